"""From data sets to a manifest: keys, splits that never share a picture, quarantine, and a run that was killed."""

import json

import numpy as np
import pytest
from PIL import Image

from collecting import collected as read_back
from collecting import write_manifest
from perceptio_core.data.manifest.manifest import RECORDS, data_root, read_images, read_quarantine, read_records
from perceptio_core.params.render import RenderParams
from perceptio_core.params.sources import DatasetParams, SourcesParams


def picture(path, seed, size=(10, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def said(question, answer):
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


@pytest.fixture
def root(tmp_path):
    """A COCO data set of train images 1-5 and conversations about val images; several of them bad."""
    folder = tmp_path / "data"
    square = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 10} for i in range(1, 6)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": square, "iscrowd": 0, "bbox": [1, 1, 4, 4]}
        for i in range(1, 6)
    ]
    for i in (1, 2, 5):
        picture(folder / f"coco/images/{i}.jpg", i)
    (folder / "coco/images/3.jpg").write_bytes(b"")
    picture(folder / "coco/images/4.jpg", 4, size=(12, 8))  # not the size that its mask has
    categories = [{"id": 1, "name": "dog"}]
    (folder / "coco/instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    picture(folder / "val/one.two/5 copy.jpg", 5)  # the same picture as train image 5
    picture(folder / "val/6.jpg", 6)
    rows = [
        {"image": "one.two/5 copy.jpg", "conversations": said("What?", "A dog.")},
        {"image": "6.jpg", "conversations": said("Where?", "Left.")},
        {"image": "gone.jpg", "conversations": said("Where?", "Left.")},
        {"image": "6.jpg", "conversations": said("What is written there?", "a" * 10_000_000)},
    ]
    (folder / "val.json").write_text(json.dumps(rows))
    return folder


DATASETS = (
    DatasetParams(name="coco", kind="coco", path="coco", split="train"),
    DatasetParams(name="talk", kind="llava", path="val.json", split="val", images="val"),
)


def collected(root, work, datasets=DATASETS):
    return read_back(datasets, root=root, work=work, max_pixels=1000)


def test_what_is_kept_and_why_the_rest_is_not(root, tmp_path):
    found = collected(root, tmp_path / "work")
    kept = {image.image_key: (image.path, image.width, image.height, image.split) for image in found.images}
    spaced = "val/one.two/5 copy.jpg"
    assert kept == {
        "coco/000000000001": ("coco/images/1.jpg", 10, 8, "train"),
        "coco/000000000002": ("coco/images/2.jpg", 10, 8, "train"),
        "talk/one_two/5_copy": (spaced, 10, 8, "val"),
        "talk/6": ("val/6.jpg", 10, 8, "val"),
    }
    assert sorted(record.record_id for record in found.records) == ["coco/1/1", "coco/2/1", "talk/0", "talk/1"]
    reasons = {row.file: row.reason for row in found.quarantine}
    assert reasons["coco/images/5.jpg"] == "the same image is among the val images"
    assert reasons["coco/images/4.jpg#coco/4/1"] == "a mask of size [8, 10] for an image of [8, 12]"
    assert reasons["coco/images/3.jpg"] == "the file is empty"
    assert reasons["coco/images/3.jpg#coco/3/1"] == "its image is quarantined"
    assert "val/gone.jpg" in reasons
    assert reasons["val/6.jpg#talk/3"] == "a text of 10000022 characters; at most 32768 are used"
    assert all(str(root) not in reason for reason in reasons.values())
    counts = found.counts
    assert (counts["train_referring"], counts["val_conversation"], counts["images_train"]) == (2, 2, 2)


def test_manifest_round_trip_is_the_same_bytes(root, tmp_path):
    found = collected(root, tmp_path / "work")
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, images=found.images, records=found.records, quarantine=found.quarantine)
        contents.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())})
    assert contents[0] == contents[1]
    assert list(read_images(tmp_path / "one")) == found.images
    assert list(read_records(tmp_path / "one" / RECORDS)) == found.records
    assert list(read_quarantine(tmp_path / "one/quarantine.jsonl")) == found.quarantine
    with pytest.raises(ValueError, match="one: two records have the id coco/1/1; it must stand for one"):
        write_manifest(tmp_path / "one", images=[], records=[found.records[0]] * 2, quarantine=[])
    with pytest.raises(ValueError, match=r"images\.parquet"):
        list(read_images(tmp_path))
    for images, message in (
        (
            found.images[::-1],
            r"images\.parquet: image_key 'talk/6' comes after 'talk/one_two/5_copy', but the rows",
        ),
        ([found.images[0]] * 2, r"image_key 'coco/0+1' occurs twice"),
    ):
        with pytest.raises(ValueError, match=message):
            write_manifest(tmp_path / "one", images=images, records=[], quarantine=[])


def test_a_killed_check_goes_on_and_notices_changed_files(root, tmp_path):
    whole = collected(root, tmp_path / "work")
    journal = tmp_path / "work/checked.jsonl"
    lines = [line for line in journal.read_text().splitlines() if line]
    journal.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert collected(root, tmp_path / "work") == whole
    resumed = journal.read_text().splitlines()
    assert resumed[:3] == lines[:3]
    assert len(resumed) == 3 + 1 + len(lines) - 3  # the half line, and the rest once
    picture(root / "coco/images/3.jpg", 3)
    assert "coco/000000000003" in {image.image_key for image in collected(root, tmp_path / "work").images}


def test_a_data_set_without_records_and_limits(root, tmp_path):
    (root / "val.json").write_text("[]")
    with pytest.raises(ValueError, match=r"val\.json: no val records of kind llava"):
        collected(root, tmp_path / "work")
    few = DatasetParams(name="coco", kind="coco", path="coco", split="train", limit=1)
    assert [record.record_id for record in collected(root, tmp_path / "work", (few,)).records] == ["coco/1/1"]


def test_pixel_limit_comes_from_the_header(root, tmp_path):
    found = read_back(DATASETS[:1], root=root, work=tmp_path / "work", max_pixels=79)
    assert found.images == []
    assert "10 x 8 pixels, at most 79 are allowed" in {row.reason for row in found.quarantine}


def test_data_root(tmp_path, monkeypatch):
    data = [{"name": "coco", "kind": "coco", "path": "coco", "split": "train"}]
    rendered = SourcesParams(render=RenderParams(train=1, val=1, test=1), root=None, datasets=data)
    assert data_root(rendered, tmp_path / "sources") == tmp_path / "sources" / "root"
    real = SourcesParams(render=None, root="${SOME_DATA}/x", datasets=data)
    monkeypatch.delenv("SOME_DATA", raising=False)
    with pytest.raises(ValueError, match="the environment variable SOME_DATA is not set"):
        data_root(real, tmp_path)
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        data_root(real, tmp_path)
    (tmp_path / "x").mkdir()
    assert data_root(real, tmp_path) == tmp_path / "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": None}, "exactly one of render and root"),
        ({"datasets": [{"name": "a", "kind": "coco", "path": "/etc", "split": "train"}]}, "below it"),
        ({"datasets": [{"name": "a", "kind": "coco", "path": "c", "split": "test"}]}, "'train' or 'val'"),
        ({"datasets": [{"name": "a", "kind": "coco", "path": "c", "split": "train", "split_by": "unc"}]}, "kind refer only"),
        ({"colour": 1}, "unknown key"),
    ],
)
def test_impossible_parameters_are_refused_by_name(change, message):
    good = {"render": None, "root": "x", "datasets": [{"name": "a", "kind": "coco", "path": "c", "split": "train"}]}
    SourcesParams.from_mapping(good, where="p: sources")
    with pytest.raises(ValueError, match=message):
        SourcesParams.from_mapping({**good, **change}, where="p: sources")
