"""Test images are kept out of training by id and by look; one picture in several data sets is one image."""

import base64
import csv
import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from collecting import collected
from perceptio_core.data.images import difference_hash, open_with_format
from perceptio_core.data.manifest.held_out import BY_ID, BY_LOOK, HeldOut, coco_id, read_held_out, reasons_to_leave_out
from perceptio_core.params.sources import DatasetParams, SourcesParams


def scene(seed, size=(96, 72)):
    """A picture with large forms, as photographs have: noise has no look that survives scaling."""
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image, form="JPEG", **how):
    stream = io.BytesIO()
    image.save(stream, format=form, **how)
    return stream.getvalue()


@pytest.fixture
def root(tmp_path):
    """Train pictures 0-9 by COCO's names, 0 and 1 a second time elsewhere; test images in each kind of place."""
    folder = tmp_path / "data"
    for name in ("coco/train2017", "gqa", "tests/pictures", "tests/blink", "refcoco"):
        (folder / name).mkdir(parents=True)
    for seed in range(10):
        (folder / f"coco/train2017/{seed:012d}.jpg").write_bytes(encoded(scene(seed), quality=95))
    for seed in (0, 1):
        (folder / f"gqa/{seed}.jpg").write_bytes((folder / f"coco/train2017/{seed:012d}.jpg").read_bytes())
    (folder / "gqa/2.png").write_bytes(encoded(scene(3).resize((48, 36)), "PNG"))  # picture 3, smaller
    files = [f"coco/train2017/{seed:012d}.jpg" for seed in range(10)] + ["gqa/0.jpg", "gqa/1.jpg", "gqa/2.png"]
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A form."}]
    (folder / "talk.json").write_text(json.dumps([{"image": file, "conversations": said} for file in files]))

    (folder / "tests/pictures/a.jpg").write_bytes(encoded(scene(4).resize((64, 64)), quality=60))
    (folder / "tests/pictures/notes.txt").write_text("no picture")
    with (folder / "tests/mmbench.tsv").open("w", newline="") as stream:
        rows = csv.writer(stream, delimiter="\t")
        rows.writerow(["index", "image"])
        rows.writerow([1, base64.b64encode(encoded(scene(5).resize((40, 30)), quality=80)).decode()])
        rows.writerow([2, "1"])  # a pointer to the row above
    picture = {"bytes": encoded(scene(6), "PNG"), "path": "x.png"}
    pq.write_table(pa.table({"idx": ["a", "b"], "image_1": [picture, None]}), folder / "tests/blink/val.parquet")
    images = [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": 72, "width": 96} for n in range(10)]
    (folder / "refcoco/instances.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    references = [{"image_id": 3, "split": "testA"}, {"image_id": 7, "split": "val"}, {"image_id": 8, "split": "train"}]
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references))
    return folder


UNREAD = "a test image that cannot be read: kept out by its id at most"
PLACES = ("tests/pictures", "tests/mmbench.tsv", "tests/blink", "refcoco/refs(unc).p")
TALK = (DatasetParams(name="talk", kind="llava", path="talk.json", split="train"),)


def test_every_kind_of_place_is_kept_out(root, tmp_path):
    found = collected(TALK, root=root, work=tmp_path / "j", held_out=PLACES)
    reasons = {row.file: row.reason for row in found.quarantine if "#" not in row.file}
    assert reasons == {
        "coco/train2017/000000000003.jpg": BY_ID,
        "coco/train2017/000000000007.jpg": BY_ID,
        "coco/train2017/000000000004.jpg": BY_LOOK,
        "coco/train2017/000000000005.jpg": BY_LOOK,
        "coco/train2017/000000000006.jpg": BY_LOOK,
        "gqa/2.png": BY_LOOK,  # it looks like the picture whose id is held out
        "tests/pictures": "no pictures: 1 files .txt, such as tests/pictures: notes.txt; nothing in them is held out",
    }
    kept = [image.path for image in found.images]
    assert kept == [f"coco/train2017/{n:012d}.jpg" for n in (0, 1, 2, 8, 9)]
    counts = found.counts
    assert (counts["held_out_by_id"], counts["held_out_by_look"], counts["images_train"]) == (2, 4, 5)
    assert {row.reason for row in found.quarantine if "#" in row.file} == {"its image is quarantined"}


def test_one_picture_in_two_data_sets_is_one_image(root, tmp_path):
    found = collected(TALK, root=root, work=tmp_path / "j")
    assert found.counts["shared_files"] == 2
    assert len(found.images) == 11
    assert len({image.sha256 for image in found.images}) == 11
    keys = [record.image_key for record in found.records]
    assert len(keys) == 13
    assert keys[10:12] == keys[:2] == ["talk/coco/train2017/000000000000", "talk/coco/train2017/000000000001"]


def test_one_photograph_under_the_names_of_four_data_sets_is_one_image(tmp_path):
    """The same bytes always; another encoding by COCO's or Visual Genome's number, if it has the same size and look."""
    first, second = "coco/train2017/000000000005.jpg", "gqa/images/5.jpg"
    files = {
        "coco/train2014/COCO_train2014_000000000005.jpg": encoded(scene(5), quality=95),
        first: encoded(scene(5), quality=80),
        "coco/other/000000000005.jpg": encoded(scene(5).resize((48, 36)), quality=95),  # another size
        "elsewhere/000000000005.jpg": encoded(scene(6), quality=95),  # another picture with this number
        "vg/VG_100K/5.jpg": encoded(scene(7), quality=95),
        second: encoded(scene(7), quality=95),
        "vg/VG_100K_2/6.jpg": encoded(scene(8), quality=95),
        "gqa/images/6.jpg": encoded(scene(8), quality=70),
        "mine/7.jpg": encoded(scene(9), quality=95),
        "yours/7.jpg": encoded(scene(9), quality=70),  # numbers of nobody
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A form."}]
    (tmp_path / "talk.json").write_text(json.dumps([{"image": file, "conversations": said} for file in files]))
    found = collected(TALK, root=tmp_path, work=tmp_path / "w")
    names = list(files)
    keys = {name: record.image_key for name, record in zip(names, found.records, strict=True)}
    same = [(names[0], first), (names[4], second), (names[6], names[7])]
    assert all(keys[one] == keys[other] for one, other in same)
    assert len(set(keys.values())) == len(files) - len(same) == len(found.images)
    assert found.counts["shared_files"] == len(same)
    assert found.quarantine == []

    # In the val split of one data set, it is in no other's train split.
    refer = {"image": names[0], "conversations": said}
    (tmp_path / "val.json").write_text(json.dumps([refer]))
    val = DatasetParams(name="v", kind="llava", path="val.json", split="val")
    found = collected([*TALK, val], root=tmp_path, work=tmp_path / "w2")
    assert {row.file for row in found.quarantine} == {first, *(f"{names[i]}#talk/{i}" for i in (0, 1))}
    assert found.counts["data"]["train"]["conversation"]["talk"] == {"records": 8, "dropped": {"among_val": 2}}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("coco/train2014/COCO_train2014_000000000139.jpg", 139),
        ("COCO_val2014_000000391895.jpg", 391895),
        ("train2017/000000000139.jpg", 139),
        ("vg/VG_100K/139.jpg", None),
        ("000000000139.png", None),
        ("x000000000139.jpg", None),
    ],
)
def test_the_id_of_a_coco_picture(name, number):
    assert coco_id(name) == number


def test_copies_look_alike_and_others_do_not():
    looks = {f"{seed}.png": difference_hash(scene(seed)) for seed in range(200)}
    for place in (scene(7).resize((301, 200)), Image.open(io.BytesIO(encoded(scene(7), quality=30)))):
        copies = {**looks, "copy": difference_hash(place)}
        held = read_of(copies.pop("copy"))
        assert dict(reasons_to_leave_out(copies.items, held)) == {"7.png": BY_LOOK}


def read_of(look):
    return HeldOut(ids=frozenset(), hashes=frozenset([look]), refused=())


def test_one_bit_decides():
    draw = np.random.default_rng(0)
    look = draw.integers(0, 256, 32, dtype=np.uint8).tobytes()
    for bits, reasons in ((32, {"a": BY_LOOK}), (33, {})):
        flipped = np.unpackbits(np.frombuffer(look, np.uint8))
        flipped[draw.permutation(256)[:bits]] ^= 1
        looks = {"a": np.packbits(flipped).tobytes()}
        assert dict(reasons_to_leave_out(looks.items, read_of(look))) == reasons


def test_places_that_are_none(root, tmp_path):
    for place, told in (
        ("absent", "absent is absent"),
        ("talk.json", r"talk\.json: allowed are folders, pictures, \.tsv, \.parquet and REFER"),
        ("refcoco", "refcoco holds no images"),
    ):
        with pytest.raises(ValueError, match=told):
            read_held_out([place], root=root, max_pixels=10**6)
    (root / "tests/pictures/b.png").write_bytes(b"")
    (root / "tests/pictures/c").write_bytes(encoded(scene(1), "PNG")[:20])
    held = read_held_out(["tests/pictures"], root=root, max_pixels=10**6)
    assert [(row.file, row.reason) for row in held.refused] == [
        ("tests/pictures: c", f"{UNREAD} (damaged or cut off: Truncated File Read)"),
        ("tests/pictures", "no pictures: 1 files .png, such as tests/pictures: b.png; nothing in them is held out"),
        ("tests/pictures", "no pictures: 1 files .txt, such as tests/pictures: notes.txt; nothing in them is held out"),
    ]
    found = collected(TALK, root=root, work=tmp_path / "j", held_out=["tests/pictures"])
    assert set(held.refused) <= set(found.quarantine)
    entry = {"name": "a", "kind": "llava", "path": "a.json", "split": "train"}
    outside = {"render": None, "root": "x", "datasets": [entry], "held_out": ["../elsewhere"]}
    with pytest.raises(ValueError, match=r"stay below it: \.\./elsewhere"):
        SourcesParams.from_mapping(outside, where="p: sources")


def test_test_pictures_are_told_by_content_and_found_in_linked_folders(tmp_path):
    """SEED-Bench's have no suffix; MME's folders are often links; a link into itself ends; what is no picture is said."""
    root, store = tmp_path / "data", tmp_path / "store"
    for folder in (root / "tests/plain", store / "inner"):
        folder.mkdir(parents=True)
    (root / "tests/plain/1454426_2591111986").write_bytes(encoded(scene(1)))
    (root / "tests/plain/called.txt").write_bytes(encoded(scene(2), "TIFF"))
    (store / "inner/x.png").write_bytes(encoded(scene(3), "GIF"))
    (root / "tests/OCR").symlink_to(store)
    (root / "tests/one.jpg").symlink_to(store / "inner/x.png")
    (store / "inner/again").symlink_to(root / "tests")
    (root / "tests/gone.jpg").symlink_to("nowhere.jpg")
    (root / "tests/000000000123.jpg").write_bytes(b"")
    for name in ("pictures.zip", "more.zip"):
        (root / "tests" / name).write_bytes(b"PK\x03\x04")
    held = read_held_out(["tests"], root=root, max_pixels=10**6, workers=2)
    looks = [
        difference_hash(Image.open(io.BytesIO(encoded(scene(n), kind)))) for n, kind in ((1, "JPEG"), (2, "TIFF"), (3, "GIF"))
    ]
    assert held.hashes == set(looks)
    assert held.ids == {123}
    assert {(row.file, row.reason) for row in held.refused} == {
        ("tests", f"no pictures: 2 files {what}; nothing in them is held out")
        for what in (".jpg, such as tests: 000000000123.jpg", ".zip, such as tests: more.zip")
    }


def test_a_folder_that_may_not_be_read_is_no_traceback(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(ValueError, match=r"^sources\.held_out: .*tests/pictures: Permission denied$"):
        read_held_out(["tests/pictures"], root=root, max_pixels=10**6)


def test_tables_in_every_form_of_the_hub(tmp_path):
    one, two = encoded(scene(1), "PNG"), encoded(scene(2), "PNG")
    rows = [
        {
            "image": {"bytes": one, "path": "COCO_val2014_000000000042.jpg"},
            "more": [{"bytes": two, "path": None}],
            "plain": b"no",
        },
        {"image": {"bytes": None, "path": "000000000043.jpg"}, "more": [], "plain": encoded(scene(3))},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub.parquet")
    (tmp_path / "t.tsv").write_text(
        "\ufeffindex\timage\n1\t" + base64.b64encode(encoded(scene(4))).decode() + f"\n2\n3\t{'!' * 99}\n"
    )
    (tmp_path / "other.tsv").write_text("index\tquestion\n1\tWhat?\n")
    held = read_held_out(["."], root=tmp_path, max_pixels=10**6)
    assert len(held.hashes) == 4
    assert held.ids == {42, 43}
    assert [(row.file, row.reason) for row in held.refused] == [
        (".: hub.parquet, row 0, plain", f"{UNREAD} (no picture; allowed are JPEG, PNG, WEBP, GIF, BMP, TIFF)"),
        (".: hub.parquet, row 1, image", f"{UNREAD} (the table has the name of its file alone)"),
        (".: t.tsv, row 1", f"{UNREAD} (the row is too short to have the column image)"),
        (".: t.tsv, row 2", f"{UNREAD} (image is not base64)"),
        (".", "no pictures: 1 files .tsv, such as .: other.tsv; nothing in them is held out"),
    ]


def test_references_that_hold_nothing_out_are_said(root):
    path = root / "refcoco/refs(unc).p"
    images = [{"id": 1, "file_name": "mine.jpg", "height": 72, "width": 96}]
    (root / "refcoco/instances.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    path.write_bytes(pickle.dumps([{"image_id": 1, "split": "testA"}]))
    (refused,) = read_held_out(["refcoco/refs(unc).p"], root=root, max_pixels=10**6).refused
    assert refused.reason == "1 test images have no COCO file name, such as mine.jpg: held out by nothing"
    for image_id, told in ((2, "image_id 2 of a test reference is not in"), ([1], "image_id must be a whole number")):
        path.write_bytes(pickle.dumps([{"image_id": image_id, "split": "testA"}]))
        with pytest.raises(ValueError, match=told):
            read_held_out(["refcoco/refs(unc).p"], root=root, max_pixels=10**6)


def test_a_wrong_place_is_found_before_any_picture_is_decoded_and_a_changed_one_decodes_its_own_alone(
    root, tmp_path, monkeypatch
):
    decoded = []

    def watched(source, **how):
        decoded.append(how.get("name"))
        return open_with_format(source, **how)

    for module in ("images", "manifest.held_out"):
        monkeypatch.setattr(f"perceptio_core.data.{module}.open_with_format", watched)
    (root / "empty").mkdir()
    for wrong in ("empty", "absent", "talk.json"):
        with pytest.raises(ValueError, match=wrong):
            collected(TALK, root=root, work=tmp_path / "w1", journals=tmp_path, held_out=["tests/pictures", wrong])
    assert decoded == []

    first = collected(TALK, root=root, work=tmp_path / "w1", journals=tmp_path, held_out=["tests/pictures"])
    assert len(decoded) == 13 + 1
    decoded.clear()
    both = collected(TALK, root=root, work=tmp_path / "w2", journals=tmp_path, held_out=["tests/pictures", "tests/blink"])
    assert decoded == [""]  # the picture of the new place
    assert both.counts["held_out_by_look"] == first.counts["held_out_by_look"] + 1
    decoded.clear()
    fresh = collected(TALK, root=root, work=tmp_path / "w3", held_out=["tests/pictures", "tests/blink"])
    assert (fresh.images, fresh.records, fresh.quarantine) == (both.images, both.records, both.quarantine)
    (root / "tests/pictures/a.jpg").write_bytes(encoded(scene(9)))  # a changed file is read again
    changed = collected(TALK, root=root, work=tmp_path / "w4", journals=tmp_path, held_out=["tests/pictures"])
    assert {row.file for row in changed.quarantine if row.reason == BY_LOOK} == {"coco/train2017/000000000009.jpg"}
