"""Readers of official layouts, against hand-worked files, pycocotools, and files that mean harm."""

import io
import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from collecting import parted
from perceptio_core.data import rle
from perceptio_core.data.images import inspect_image, open_image, open_with_format
from perceptio_core.data.readers.coco import coco_records
from perceptio_core.data.readers.llava import llava_records
from perceptio_core.data.readers.refer import read_plain_pickle, read_refer

REALDATA = os.environ.get("PERCEPTIO_REALDATA")
real = pytest.mark.skipif(not REALDATA, reason="PERCEPTIO_REALDATA names no folder of real data")

SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]  # 16 pixels
OVERLAPPING = [3.0, 1.0, 7.0, 1.0, 7.0, 5.0, 3.0, 5.0]  # 16, 8 of them shared


def refer_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    instances = {
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 8, "width": 10}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 2,
                "segmentation": [SQUARE, OVERLAPPING],
                "iscrowd": 0,
                "bbox": [1, 1, 6, 4],
            }
        ],
        "categories": [{"id": 2, "name": "dog"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    refs = [
        {
            "ref_id": 3,
            "ann_id": 1,
            "image_id": 7,
            "category_id": 2,
            "file_name": "COCO_train2014_000000000007_1.jpg",
            "split": "train",
            "sent_ids": [11, 12],
            "sentences": [
                {"sent_id": 11, "sent": "left dog", "raw": "Left dog.", "tokens": ["left", "dog"]},
                {"sent_id": 12, "sent": "the caf\xe9 dog", "raw": "", "tokens": []},
            ],
        }
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return folder


# ------------------------------------------------------------------------------------------------------------ REFER


def test_golden_refer_folder(tmp_path):
    first, second = read_refer(refer_folder(tmp_path / "r"), split_by="unc")
    assert (first.ref_id, first.sent_id, first.ann_id, first.image_id, first.split) == (3, 11, 1, 7, "train")
    assert (first.sentence, second.sentence, first.category) == ("left dog", "the café dog", "dog")
    assert first.image_file == "images/mscoco/images/train2014/COCO_train2014_000000000007.jpg"
    assert rle.area(first.mask) == 24  # by union; summing the polygons would give 32
    assert rle.decode(first.mask).shape == (8, 10)


def test_a_pickle_of_python_2_is_read(tmp_path):
    folder = refer_folder(tmp_path / "r")
    # cPickle of Python 2, protocol 2: byte strings (SHORT_BINSTRING) for keys and values.
    (folder / "py2.p").write_bytes(b"\x80\x02]q\x00}q\x01U\x04sentq\x02U\x04caf\xe9q\x03sa.")
    assert read_plain_pickle(folder / "py2.p") == [{"sent": "café"}]


class Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_means_harm_is_refused_before_it_acts(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    folder = refer_folder(tmp_path / "r")
    (folder / "refs(unc).p").write_bytes(pickle.dumps([Harm()], protocol=protocol))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p.*(posix|os)\.system.*only plain containers"):
        list(read_refer(folder, split_by="unc"))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("value", [np.float64(1), {1: Path("x")}, complex(1, 2)])
def test_even_harmless_objects_are_refused_by_name(tmp_path, value):
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(ValueError, match="it asks for the object"):
        read_plain_pickle(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02]q\x00", b"not a pickle", b"\x80\x02Px\n."])
def test_broken_pickles_are_value_errors_that_name_the_file(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p"):
        read_plain_pickle(path)


def test_refer_errors_name_file_and_key(tmp_path):
    folder = refer_folder(tmp_path / "r")
    with pytest.raises(ValueError, match=r"refs\(umd\)\.p is absent.*refs\(unc\)"):
        list(read_refer(folder, split_by="umd"))
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())  # noqa: S301 (our own)
    refs[0]["ann_id"] = 99
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(ValueError, match="reference 0: ann_id 99"):
        list(read_refer(folder, split_by="unc"))
    instances = json.loads((folder / "instances.json").read_text())
    instances["images"][0]["file_name"] = "../../etc/passwd"
    (folder / "instances.json").write_text(json.dumps(instances))
    refs[0]["ann_id"] = 1
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(ValueError, match="leads out of the image folder"):
        list(read_refer(folder, split_by="unc"))


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_an_id_that_stands_for_two_things_is_refused(tmp_path, kind):
    folder = refer_folder(tmp_path / "r")
    instances = json.loads((folder / "instances.json").read_text())
    first = instances[kind][0]
    instances[kind].append(dict(first))
    (folder / "instances.json").write_text(json.dumps(instances))
    assert list(read_refer(folder, split_by="unc")), "the same line twice does no harm"
    instances[kind].append({**first, "note": "another"})
    (folder / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(
        ValueError, match=rf"instances\.json: {kind}: the id {first['id']} stands twice, with different content"
    ):
        list(read_refer(folder, split_by="unc"))


@real
def test_real_refcoco():
    folder = Path(str(REALDATA)) / "refcoco"
    expressions = list(read_refer(folder, split_by="unc"))
    assert len({expression.image_id for expression in expressions}) == 68
    assert len({expression.ref_id for expression in expressions}) == 163
    assert len({e.ref_id for e in expressions if e.split == "train"}) == 147
    assert len(expressions) == 210
    for expression in expressions:
        with Image.open(folder / expression.image_file) as image:
            assert expression.mask["size"] == [image.height, image.width]
    from pycocotools.coco import COCO

    official = COCO(str(folder / "instances.json"))
    for expression in expressions[::10]:
        theirs = official.annToMask(official.anns[expression.ann_id])
        assert (rle.decode(expression.mask) == theirs.astype(bool)).all()


# --------------------------------------------------------------------------------------------------- COCO and LLaVA


def test_coco_records_name_all_objects_of_a_category(tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    far = [8.0, 5.0, 10.0, 5.0, 10.0, 8.0]
    rows = [
        {"id": 1, "image_id": 7, "category_id": 2, "segmentation": [far], "iscrowd": 0, "bbox": [8, 5, 2, 3]},
        {"id": 2, "image_id": 7, "category_id": 2, "segmentation": [SQUARE], "iscrowd": 0, "bbox": [1, 1, 4, 4]},
        {"id": 3, "image_id": 7, "category_id": 3, "segmentation": {"size": [8, 10], "counts": [80]}, "iscrowd": 1},
        {"id": 4, "image_id": 7, "category_id": 3, "segmentation": [SQUARE], "iscrowd": 0},
        {"id": 5, "image_id": 7, "category_id": 4, "segmentation": [[1, 1, 4, 4]], "iscrowd": 0},
        {"id": 6, "image_id": 8, "category_id": 2, "segmentation": [SQUARE], "iscrowd": 0},
    ]
    categories = [{"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 4, "name": "cow"}]
    images = [{"id": 7, "file_name": "7.jpg", "height": 8, "width": 10}]
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    records, refused = parted(coco_records, folder, source="coco", split="train", root=tmp_path, images=None, max_objects=8)
    (record,) = records  # cats have a crowd, the cow's polygon is a box, image 8 does not exist
    assert record.turns[0][0] == "Please segment dog in this image."
    assert [rle.area(mask) for mask in record.masks] == [16, rle.area(record.masks[1])]  # the left one first
    assert record.image == "coco/images/7.jpg"
    assert sorted((row.file.partition("#")[2], row.reason) for row in refused)[2] == (
        "image/7/category/3",
        "2 objects of one kind (cat), among them a crowd",
    )
    assert sorted(row.file.partition("#")[2] for row in refused)[:2] == ["annotation/5", "annotation/6"]
    none, refused = parted(coco_records, folder, source="coco", split="train", root=tmp_path, images=None, max_objects=1)
    assert none == []
    assert "2 objects of one kind (dog), at most 1 are asked for at once" in [row.reason for row in refused]


def _annotations(path):
    return json.loads(path.read_text())["annotations"]


@real
def test_real_coco():
    root = Path(str(REALDATA))
    records, refused = parted(coco_records, root / "coco", source="coco", split="train", root=root, images=None, max_objects=8)
    assert len({record.image for record in records}) > 130
    categories = len({(row["image_id"], row["category_id"]) for row in _annotations(root / "coco/instances.json")})
    assert len(records) + len(refused) == categories
    assert all("objects of one kind" in row.reason for row in refused)
    assert all(1 <= len(record.masks) <= 8 for record in records)


def test_llava_rows_are_read_or_refused_with_their_number(tmp_path):
    def said(*texts):
        return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]

    rows = [
        {"id": "a", "image": "gqa/images/1.jpg", "conversations": said("<image>\nWhat?", "A dog.", "Where?", "Left.")},
        {"id": "a", "conversations": said("Hi", "Hello")},
        {"id": "b", "image": "/etc/passwd", "conversations": said("What?", "x")},
        {"id": "c", "image": "c.jpg", "conversations": said("What?")},
        {"id": "d", "image": "d.jpg", "conversations": said("<image>", "x")},
        "text",
    ]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    (record,), refused = parted(
        llava_records, tmp_path / "l.json", source="llava", split="train", root=tmp_path, images="pictures"
    )
    assert record.turns == (("What?", "A dog."), ("Where?", "Left."))
    assert record.image == "pictures/gqa/images/1.jpg"
    assert [row.file for row in refused] == [f"l.json#{i}" for i in (1, 2, 3, 4, 5)]
    assert all(row.reason for row in refused)


# ---------------------------------------------------------------------------------------------------- masks, images


def test_rle_round_trip_against_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((rng.integers(1, 40), rng.integers(1, 40))) < rng.random()
        ours = rle.encode(mask)
        assert (rle.decode(ours) == mask).all()
        assert rle.area(ours) == mask.sum()
        assert json.loads(json.dumps(ours)) == ours
        assert (coco_mask.decode(ours) == mask).all()


def test_uncompressed_and_compressed_forms_agree():
    mask = np.zeros((4, 3), bool)
    mask[1:3, 1] = True  # column order: 5 off, 2 on, 5 off
    uncompressed = rle.from_segmentation({"size": [4, 3], "counts": [5, 2, 5]}, height=4, width=3)
    assert uncompressed == rle.encode(mask)
    assert rle.from_segmentation(rle.encode(mask), height=4, width=3) == rle.encode(mask)
    assert rle.area(rle.from_segmentation([], height=4, width=3)) == 0


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [[1, 1, 4, 4]],  # a box, to pycocotools
        [[1, 1, 4, 4, 2]],
        [[1, 1, 4, 4, float("nan"), 2]],
        [[1, 1, 4, 4, 1e9, 2]],
        {"size": [9, 9], "counts": "x"},
        {"size": [4, 3], "counts": [5, 2, 6]},
        {"size": [4, 3], "counts": [13, -1]},
        {"size": [4, 3], "counts": "zzzz"},
        {"size": [4, 3], "counts": rle.encode(np.ones((2, 2), bool))["counts"]},  # runs that end before the picture does
        {"size": [4, 3], "counts": 5},
    ],
)
def test_impossible_masks_are_refused(segmentation):
    with pytest.raises(ValueError, match=r"\S"):
        rle.from_segmentation(segmentation, height=4, width=3)


def encoded(image, format_, **options):
    stream = io.BytesIO()
    image.save(stream, format=format_, **options)
    return stream.getvalue()


def test_exif_orientation_is_honoured():
    image = Image.new("RGB", (30, 20), "blue")
    image.paste("red", (0, 0, 10, 20))  # red at the left; turned right by 90 degrees it is at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(image, "JPEG", exif=exif, quality=95)
    opened = open_with_format(content)
    assert opened.image.size == (20, 30)
    assert opened.image.getpixel((10, 3))[0] > 200
    assert opened.extension is None  # its own bytes do not show it upright
    assert open_with_format(encoded(image, "JPEG")).extension == "jpg"
    assert open_with_format(encoded(image, "WEBP")).extension is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    gray = Image.linear_gradient("L").resize((16, 16))
    image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    how = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    opened = open_with_format(encoded(image, kind, **how))
    assert opened.image.mode == "RGB"
    assert opened.extension is None
    if mode not in ("1", "P"):
        assert np.abs(np.asarray(opened.image)[..., 0].astype(int) - np.asarray(gray)).max() <= 3


def bomb():
    """A PNG whose header claims 100000 x 100000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


HOSTILE = {
    "empty": b"",
    "text": b"hello",
    "truncated": encoded(Image.effect_noise((64, 64), 60).convert("RGB"), "JPEG")[:-400],
    "truncated_png": encoded(Image.effect_noise((64, 64), 60).convert("RGB"), "PNG")[:-400],
    "bomb": bomb(),
    "postscript": encoded(Image.new("RGB", (8, 8)), "EPS"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_images_are_value_errors_that_name_the_file(tmp_path, name):
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(HOSTILE[name])
    for read in (open_image, inspect_image):
        with pytest.raises(ValueError, match=f"{name}.jpg"):
            read(path)
    with pytest.raises(ValueError, match=r"absent\.jpg"):
        open_image(tmp_path / "absent.jpg")


def test_pixels_and_files_that_stand_for_no_picture_are_refused(tmp_path):
    for name, pixels, message in (
        ("float.tiff", np.full((4, 4), 0.5, np.float32), "floating-point"),
        ("wide.tiff", np.full((4, 4), 10**6, np.int32), "from 1000000 to 1000000; at most 16 bits"),
    ):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            open_image(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe", "device", "loop", "folder"):
        for read in (open_image, inspect_image):
            with pytest.raises(ValueError, match=f"{name}.jpg"):
                read(tmp_path / f"{name}.jpg")


def test_damaged_exif_is_no_damaged_picture():
    content = encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert open_image(content).size == (8, 8)


@real
def test_real_photos_of_every_kind():
    photos = sorted(
        path for path in (Path(str(REALDATA)) / "photos").rglob("*") if path.suffix.lower() in (".jpg", ".png", ".webp")
    )
    assert len(photos) > 10
    for path in photos:
        assert open_image(path).mode == "RGB"
