"""gRefCOCO, GranD-f and tables of questions: golden rows in the official layouts, and what becomes of bad ones."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from collecting import collected, parted
from perceptio_core.data.readers.gcg import gcg_records
from perceptio_core.data.readers.grefer import NOTHING_ANSWER, grefer_records
from perceptio_core.data.readers.label_maps import ade_records, panoptic_records
from perceptio_core.data.readers.questions import question_records
from perceptio_core.data.readers.visual_genome import region_records
from perceptio_core.data.rle import area, decode, encode
from perceptio_core.params.sources import DatasetParams

HEIGHT, WIDTH = 10, 40


def columns(left, right):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, left:right] = True
    return mask


def write_grefcoco(folder, refs):
    """Annotations 1, 2, 3 cover the columns 0-9, 10-19 and 20-29; annotation 4 is a crowd, 5 a broken polygon."""
    folder.mkdir()
    rows = [
        {"id": key, "image_id": 7, "category_id": 1, "iscrowd": int(key == 4)}
        | {"segmentation": [[10 * key - 10, 0, 10 * key, 0, 10 * key, HEIGHT, 10 * key - 10, HEIGHT]] if key < 5 else [[1, 2]]}
        for key in range(1, 6)
    ]
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": HEIGHT, "width": WIDTH}]
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": []}))
    same = {"image_id": 7, "split": "train"}
    rows = [
        {"ref_id": i, "sentences": [{"sent_id": 10 * i + j, "sent": f"s{i}{j}"} for j in range(2)], **same, **ref}
        for i, ref in enumerate(refs)
    ]
    (folder / "grefs(unc).json").write_text(json.dumps(rows))
    return folder


def test_grefcoco_has_several_targets_or_none(tmp_path):
    refs = [{"ann_id": [3, 1]}, {"ann_id": [-1]}, {"ann_id": 2}, {"ann_id": [2], "split": "val"}]
    folder = write_grefcoco(tmp_path / "grefcoco", refs)
    records, refused = parted(grefer_records, folder, source="g", split="train", root=tmp_path, images="coco/train2014")
    assert refused == []
    assert [record.record_id for record in records] == ["g/0/0", "g/0/1", "g/1/10", "g/1/11", "g/2/20", "g/2/21"]
    both, nothing, one = records[0], records[2], records[4]
    assert both.turns == (("Please segment s00 in this image.", "Sure, here it is."),)
    for mask, (left, right) in zip(both.masks, ((0, 10), (20, 30)), strict=True):
        np.testing.assert_array_equal(decode(mask), columns(left, right))
    assert (nothing.masks, nothing.turns[0][1]) == ((), NOTHING_ANSWER)
    assert len(one.masks) == 1
    assert both.image == "coco/train2014/COCO_train2014_000000000007.jpg"


def test_bad_references_are_refused_with_their_number(tmp_path):
    refs = [
        {"ann_id": [9]},
        {"ann_id": [1, 4]},
        {"ann_id": [5]},
        {"ann_id": []},
        {"ann_id": [1], "image_id": 8},
        {"ann_id": [1], "sentences": [{"sent": "x"}]},
        {"ann_id": [1, "a"]},
    ]
    folder = write_grefcoco(tmp_path / "g", refs)
    records, refused = parted(grefer_records, folder, source="g", split="train", root=tmp_path, images=None)
    assert records == []
    assert [row.file for row in refused] == [f"g/grefs(unc).json#{i}" for i in range(len(refs))]
    told = " ".join(row.reason for row in refused)
    for text in ("ann_id 9 is not in", "annotation 4 is a crowd", "three x, y pairs", "image_id 8", "sent_id"):
        assert text in told
    (folder / "grefs(unc).json").write_text('[{"ref_id": 1,')
    with pytest.raises(ValueError, match=r"grefs\(unc\)\.json"):
        parted(grefer_records, folder, source="g", split="train", root=tmp_path, images=None)


def grounded(**changes):
    caption = "A man rides a horse."
    groundings = {
        "a horse": {"token_positives": [12, 19], "rle_masks": [encode(columns(0, 5)), encode(columns(3, 8))]},
        "A man": {"token_positives": [0, 5], "rle_masks": [encode(columns(30, 40))]},
    }
    return {"image_id": "1", "file_name": "1.jpg", "caption": caption, "groundings": groundings, **changes}


def test_grounded_captions_mark_their_phrases_in_order(tmp_path):
    (tmp_path / "gcg").mkdir()
    file = tmp_path / "gcg/OpenPsgGCG_train.json"
    file.write_text(json.dumps([grounded()]))
    (record,), refused = parted(gcg_records, file, source="psg", split="train", root=tmp_path, images="coco/train2017")
    assert refused == []
    assert record.turns[0][1] == "<p> A man </p> rides <p> a horse </p>."
    assert record.image == "coco/train2017/1.jpg"
    for mask, (left, right) in zip(record.masks, ((30, 40), (0, 8)), strict=True):
        np.testing.assert_array_equal(decode(mask), columns(left, right))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groundings": {}}, "not empty"),
        ({"caption": None}, "caption must be a text"),
        ({"caption": "A man"}, "lies outside"),
        ({"file_name": "../1.jpg"}, "leads out"),
        ({"groundings": {"a": {"token_positives": [0, 5]}}}, "needs token_positives"),
        ({"groundings": {"a": {"token_positives": [0, 5], "rle_masks": []}}}, "run lengths of one size"),
        ({"groundings": {"a": {"token_positives": [0, 5], "rle_masks": [{"size": [2, 2], "counts": [3]}]}}}, "with sum 4"),
        ({"groundings": {c: {"token_positives": [0, 3], "rle_masks": [encode(columns(0, 1))]} for c in "ab"}}, "overlaps"),
    ],
)
def test_bad_captions_are_refused(tmp_path, change, told):
    (tmp_path / "x.json").write_text(json.dumps([grounded(**change), 3, grounded()]))
    records, refused = parted(gcg_records, tmp_path / "x.json", source="x", split="train", root=tmp_path, images=None)
    assert [record.record_id for record in records] == ["x/2"]
    assert [row.file for row in refused] == ["x.json#0", "x.json#1"]
    assert told in refused[0].reason


ROWS = [
    {"image": "a.png", "question": 'He said "where?",\nand left.', "answer": "There.", "note": "x"},
    {"image": "deep/b.png", "question": "Which?", "answer": " (B) ", "note": ""},
    {"image": "c.png", "question": "Empty?", "answer": "", "note": ""},
    {"image": "/etc/passwd", "question": "Where?", "answer": "x", "note": ""},
]


def write_table(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_of_questions(tmp_path, kind):
    (tmp_path / "mine").mkdir()
    path = write_table(tmp_path / f"mine/questions.{kind}", ROWS)
    records, refused = parted(question_records, path, source="mine", split="train", root=tmp_path, images=None)
    assert [(record.image, record.turns) for record in records] == [
        ("mine/a.png", (('He said "where?",\nand left.', "There."),)),
        ("mine/deep/b.png", (("Which?", "(B)"),)),
    ]
    assert [row.file for row in refused] == [f"mine/questions.{kind}#{i}" for i in (2, 3)]
    assert ["answer must be a text" in refused[0].reason, "leads out" in refused[1].reason] == [True, True]
    lacking = write_table(tmp_path / f"few.{kind}", [{"image": "a.png", "question": "x"}])
    if kind == "jsonl":
        _, refused = parted(question_records, lacking, source="few", split="train", root=tmp_path, images=None)
        assert refused[0].reason == "answer must be a text that is not empty, got None"
    else:
        with pytest.raises(ValueError, match=rf"few\.{kind}: lacks the columns answer; it has image, question"):
            parted(question_records, lacking, source="few", split="train", root=tmp_path, images=None)


def test_broken_tables(tmp_path):
    (tmp_path / "cut.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"image": "b.png", "ques\n[1]\n')
    records, refused = parted(question_records, tmp_path / "cut.jsonl", source="c", split="train", root=tmp_path, images="p")
    assert [record.image for record in records] == ["p/a.png"]
    assert [row.reason.split(":")[0] for row in refused] == ["not JSON", "the line is not an object"]
    for name, content in (
        ("cut.csv", b'image,question,answer\na.png,"What'),
        ("latin.csv", b"image,question,answer\na.png,caf\xe9,x"),
        ("cut.parquet", b"PAR1"),
        ("x.txt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            parted(question_records, tmp_path / name, source="c", split="train", root=tmp_path, images=None)
    one_word = "a" * 10_000_000
    (tmp_path / "long.csv").write_text(f"image,question,answer\na.png,{one_word},x\n")
    (record,), _ = parted(question_records, tmp_path / "long.csv", source="c", split="train", root=tmp_path, images=None)
    assert len(record.turns[0][0]) == len(one_word)


def labels(path, labels_HW):
    """A label picture as COCO writes it: red + 256 green + 65536 blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = np.stack([labels_HW, labels_HW // 256, labels_HW // 65536], axis=-1) % 256
    Image.fromarray(channels.astype(np.uint8)).save(path)


def write_panoptic(folder):
    """One image: two dogs (ids 70000 right, 300 left), a wall (5), a crowd of cats (6); a second image lacks its picture."""
    labels_HW = np.zeros((HEIGHT, WIDTH), int)
    for label, (left, right) in {70000: (30, 40), 300: (0, 10), 5: (10, 20), 6: (20, 30)}.items():
        labels_HW[:, left:right] = label
    labels(folder / "panoptic_train2017/000000000009.png", labels_HW)
    segments = [{"id": 70000, "category_id": 1}, {"id": 300, "category_id": 1}, {"id": 5, "category_id": 199}]
    segments.append({"id": 6, "category_id": 2, "iscrowd": 1})
    annotations = [
        {"image_id": 9, "file_name": "000000000009.png", "segments_info": segments},
        {"image_id": 10, "file_name": "000000000010.png", "segments_info": segments},
        {"image_id": 11, "file_name": "000000000009.png", "segments_info": segments},
        {"image_id": 9, "file_name": "000000000009.png", "segments_info": [{"id": 7, "category_id": 1}]},
        {"image_id": 9, "file_name": "../x.png", "segments_info": []},
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (9, 10)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 199, "name": "wall-other-merged"}],
    }
    (folder / "panoptic_train2017.json").write_text(json.dumps(content))
    return folder / "panoptic_train2017.json"


def test_panoptic_has_things_and_stuff(tmp_path):
    path = write_panoptic(tmp_path / "annotations")
    records, refused = parted(
        panoptic_records, path, source="pan", split="train", root=tmp_path, images="coco/train2017", max_objects=8
    )
    assert [(record.expression, record.image) for record in records] == [
        ("dog", "coco/train2017/000000000009.jpg"),
        ("wall", "coco/train2017/000000000009.jpg"),
    ]
    for mask, (left, right) in zip(records[0].masks, ((0, 10), (30, 40)), strict=True):
        np.testing.assert_array_equal(decode(mask), columns(left, right))
    assert [row.file for row in refused] == [f"annotations/panoptic_train2017.json#annotation/{i}" for i in (1, 2, 3, 4)]
    told = [row.reason for row in refused]
    assert "000000000010.png" in told[0]
    assert [told[1], told[2]] == ["lacks or does not know 11", "the label picture has no pixel of a segment of dog"]
    assert "leads out" in told[3]
    assert all(str(tmp_path) not in reason for reason in told)
    few, _ = parted(panoptic_records, path, source="pan", split="train", root=tmp_path, images=None, max_objects=1)
    assert [record.expression for record in few] == ["wall"]
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"panoptic_train2017\.json: not JSON"):
        parted(panoptic_records, path, source="pan", split="train", root=tmp_path, images=None, max_objects=1)


def test_ade20k_by_class(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    (folder / "annotations/training").mkdir(parents=True)
    labels_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels_HW[:, :10], labels_HW[:, 30:] = 1, 150
    Image.fromarray(labels_HW).save(folder / "annotations/training/ADE_train_00000001.png")
    (folder / "annotations/training/ADE_train_00000002.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"objectInfo150\.txt"):
        parted(ade_records, folder, source="ade", split="train", root=tmp_path)
    lines = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1576\t11664\t1172\twall", "150\t0.0001\t10\t1\tflag, banner"]
    (folder / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    records, refused = parted(ade_records, folder, source="ade", split="train", root=tmp_path)
    image = "ADEChallengeData2016/images/training/ADE_train_00000001.jpg"
    assert [(record.expression, record.image) for record in records] == [("wall", image), ("flag", image)]
    for record, (left, right) in zip(records, ((0, 10), (30, 40)), strict=True):
        np.testing.assert_array_equal(decode(record.masks[0]), columns(left, right))
    assert [row.file for row in refused] == ["ADEChallengeData2016/annotations/training/ADE_train_00000002.png"]


def test_regions_of_visual_genome(tmp_path):
    folder = tmp_path / "vg"
    folder.mkdir()
    where = "https://cs.stanford.edu/people/rak248"
    pictures = [{"image_id": i, "url": f"{where}/VG_100K_2/{i}.jpg", "width": 40, "height": 10} for i in (1, 2, 3)]
    same = {"x": 10, "y": 5, "width": 10, "height": 5}
    rows = [
        {
            "id": 1,
            "regions": [
                {"region_id": 1, "phrase": "a dog ", **same},
                {"region_id": 2, "phrase": "cut at the edge", **same, "x": 36, "y": -2},
                {"region_id": 3, "phrase": "outside", **same, "x": 40},
                {"region_id": 4, "phrase": " ", **same},
                {"region_id": 5, **same},
                7,
            ],
        },
        {"id": 2, "regions": [{"region_id": i, "phrase": str(i), **same} for i in range(10)]},
        {"id": 9, "regions": []},
        {"id": 3},
    ]
    (folder / "image_data.json").write_text(json.dumps(pictures))
    (folder / "region_descriptions.json").write_text(json.dumps(rows))
    records, refused = parted(region_records, folder, source="vg", split="train", root=tmp_path, images=None, max_objects=8)
    assert records[0].turns == (
        ("What is in the region [[250, 500, 500, 1000]]?", "a dog"),
        ("What is in the region [[900, 0, 1000, 300]]?", "cut at the edge"),
    )
    assert [(record.image, len(record.turns)) for record in records] == [("vg/VG_100K_2/1.jpg", 2), ("vg/VG_100K_2/2.jpg", 8)]
    named = [row.file.removeprefix("vg/region_descriptions.json#") for row in refused]
    assert named == ["0/3", "0/4", "0/5", "0/None", "2", "3"]
    assert "has no pixel in an image of 40 x 10" in refused[0].reason
    (folder / "region_descriptions.json").write_text('[{"id": 1')
    with pytest.raises(ValueError, match=r"region_descriptions\.json"):
        parted(region_records, folder, source="vg", split="train", root=tmp_path, images=None, max_objects=8)


def test_the_new_kinds_reach_the_manifest(tmp_path):
    write_grefcoco(tmp_path / "g", [{"ann_id": [1, 2]}, {"ann_id": [-1]}])
    (tmp_path / "gcg.json").write_text(json.dumps([grounded(file_name="1.png")]))
    write_table(tmp_path / "q.csv", ROWS[:1])
    (tmp_path / "coco").mkdir()
    write_panoptic(tmp_path / "pan")
    for folder in ("images", "annotations"):
        (tmp_path / "ade" / folder / "training").mkdir(parents=True)
    (tmp_path / "ade/objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
    Image.new("L", (WIDTH, HEIGHT), 1).save(tmp_path / "ade/annotations/training/b.png")
    pictures = ("coco/COCO_train2014_000000000007.jpg", "1.png", "a.png", "coco/000000000009.jpg", "ade/images/training/b.jpg")
    for number, name in enumerate(pictures):
        Image.new("RGB", (WIDTH, HEIGHT), (60 * number, 0, 0)).save(tmp_path / name)
    found = collected(
        [
            DatasetParams(name="g", kind="grefer", path="g", split="train", images="coco"),
            DatasetParams(name="psg", kind="gcg", path="gcg.json", split="train"),
            DatasetParams(name="mine", kind="questions", path="q.csv", split="train"),
            DatasetParams(name="pan", kind="panoptic", path="pan/panoptic_train2017.json", split="train", images="coco"),
            DatasetParams(name="ade", kind="ade20k", path="ade", split="train"),
        ],
        root=tmp_path,
        work=tmp_path / "work",
    )
    assert len(found.quarantine) == 4, "of the panoptic file"
    assert [(row.record_id, row.task, [area(mask) for mask in row.masks or ()]) for row in found.records] == [
        ("g/0/0", "referring", [100, 100]),
        ("g/0/1", "referring", [100, 100]),
        ("g/1/10", "referring", []),
        ("g/1/11", "referring", []),
        ("psg/0", "referring", [100, 80]),
        ("mine/0", "conversation", []),
        ("pan/000000000009/dog", "referring", [100, 100]),
        ("pan/000000000009/wall", "referring", [100]),
        ("ade/b/wall", "referring", [400]),
    ]
