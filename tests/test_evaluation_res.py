"""cIoU and gIoU by hand, against pycocotools, and on real RefCOCO expressions."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from benchmarks import res_errors
from official_files import refer_mask, write_refer
from perceptio_core.data.rle import decode, encode, run_lengths
from perceptio_core.evaluation.benchmarks.benchmark import Answer
from perceptio_core.evaluation.benchmarks.masks import checked, overlap, union
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import wilson

BOOTSTRAP = Bootstrap(samples=200)


def answer(key: str, *masks: NDArray[np.bool_]) -> Answer:
    return Answer(item_id=key, raw="", text="", masks=tuple(encode(mask) for mask in masks))


def test_ciou_and_giou_by_hand(tmp_path: Path) -> None:
    benchmark = ReferringSegmentation(write_refer(tmp_path), split="test", split_by="umd")
    items = benchmark.items
    assert [item.expected for item in items] == ["left", "the left box", "both"]
    assert items[0].question == "Please segment left in this image."
    assert all(isinstance(item.image, Path) and item.image.is_file() for item in items)
    said = [
        # 10 x 10 truth: a shift by half gives 50 / 150.
        answer(items[0].item_id, refer_mask(0, 5, 10, 15)),
        # No mask: 0 / 100, and it counts.
        answer(items[1].item_id),
        # The two polygons cover columns 0..15; two masks are merged by union: 150 / 150.
        answer(items[2].item_id, refer_mask(0, 0, 10, 8), refer_mask(0, 6, 10, 15)),
    ]
    scores = benchmark.score({a.item_id: a for a in said}, bootstrap=BOOTSTRAP)
    metrics = {metric.name: metric for metric in scores.headline}
    assert metrics["res_ciou"].value == pytest.approx(100 * 200 / 400)
    assert metrics["res_giou"].value == pytest.approx(100 * (1 / 3 + 0 + 1) / 3)
    assert metrics["res_ciou"].n == 3
    assert "3 expressions" in metrics["res_ciou"].protocol
    assert "1 answers without a mask" in metrics["res_ciou"].protocol
    assert (metrics["res_ciou"].low or 0) <= 50 <= (metrics["res_ciou"].high or 0)
    assert scores.correct[items[0].item_id] == pytest.approx(1 / 3)


def test_split_limit_and_name(tmp_path: Path) -> None:
    folder = write_refer(tmp_path)
    benchmark = ReferringSegmentation(folder, split="val", name="refcocog")
    (item,) = benchmark.items
    scores = benchmark.score({item.item_id: answer(item.item_id, refer_mask(0, 0, 10, 10))}, bootstrap=BOOTSTRAP)
    assert [(metric.name, metric.value) for metric in scores.headline] == [("refcocog_ciou", 100), ("refcocog_giou", 100)]
    assert len(ReferringSegmentation(folder, split="test", limit=2).items) == 2
    elsewhere = ReferringSegmentation(folder, split="val", images=tmp_path / "coco").items[0]
    assert elsewhere.image == tmp_path / "coco/COCO_train2014_000000000007.jpg"
    with pytest.raises(ValueError, match=r"'testA'; it has \['test', 'val'\]"):
        ReferringSegmentation(folder, split="testA")


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    benchmark = ReferringSegmentation(write_refer(tmp_path), split="val")
    key = benchmark.items[0].item_id
    with pytest.raises(ValueError, match="size"):
        benchmark.score({key: answer(key, np.zeros((20, 10), dtype=bool))}, bootstrap=BOOTSTRAP)


@pytest.mark.parametrize("seed", range(5))
def test_overlap_agrees_with_plain_arrays_and_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = rng.random((2, 33, 47)) < 0.4
    intersection, union_ = overlap(encode(one), encode(two))
    assert (intersection, union_) == (np.count_nonzero(one & two), np.count_nonzero(one | two))
    expected = coco.iou([dict(encode(one))], [dict(encode(two))], [0])[0, 0]
    assert intersection / union_ == pytest.approx(expected)
    np.testing.assert_array_equal(decode(union([encode(one), encode(two)], size=(33, 47))), one | two)
    np.testing.assert_array_equal(decode(encode(one)), one)
    assert json.loads(json.dumps(encode(one))) == encode(one)


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_that_the_library_packed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.repeat(rng.random((rng.integers(1, 60), rng.integers(1, 9))) < rng.random(), rng.integers(1, 40), axis=1)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    expected = np.diff(np.concatenate([[0], changes, [len(flat)]]))
    rle = encode(mask)
    np.testing.assert_array_equal(run_lengths(rle["counts"]), expected)
    assert checked(rle, size=mask.shape, where="here") == rle


def test_real_refcoco_val() -> None:
    root = os.environ.get("PERCEPTIO_REALDATA")
    if not root:
        pytest.skip("PERCEPTIO_REALDATA is not set: the real benchmark files are not at hand")
    benchmark = ReferringSegmentation(Path(root) / "refcoco", split="val", split_by="unc")
    assert len(benchmark.items) == 43
    answers: dict[str, Any] = {}
    for item in benchmark.items:
        assert isinstance(item.image, Path)
        assert item.truth is not None
        with Image.open(item.image) as image:
            assert [image.height, image.width] == list(item.truth["size"])
        answers[item.item_id] = Answer(item_id=item.item_id, raw="", text="", masks=(item.truth,))
    scores = benchmark.score(answers, bootstrap=BOOTSTRAP)
    assert [metric.value for metric in scores.headline] == [100.0, 100.0]
    assert [metric.low for metric in scores.headline] == pytest.approx(2 * [wilson(43, 43)[0]])
    assert [metric.n for metric in scores.headline] == [43, 43]


def test_wrong_masks_are_told_apart_and_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the box of 100 pixels one mask is right, one the other object, one nothing; that of 150 has two thirds."""
    write_refer(tmp_path / "sources/root/refcoco")
    masks = {
        "0/0": refer_mask(0, 0, 10, 10),
        "0/1": refer_mask(0, 0, 10, 15),
        "1/2": refer_mask(0, 5, 10, 15),
        "2/3": refer_mask(0, 16, 10, 20),
    }
    predictions = tmp_path / "evaluate/full/predictions"
    predictions.mkdir(parents=True)
    lines = [json.dumps({"item_id": key, "masks": [encode(mask)]}) for key, mask in masks.items()]
    (predictions / "res.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(sys, "argv", ["res_errors", str(tmp_path), "full"])
    res_errors.main()
    assert capsys.readouterr().out.splitlines() == [
        "nearest to the object asked for: 50.0% of 4 masks, gIoU 83.3, cIoU 80.0",  # 1 and 100 / 150
        "nearest to another object: 25.0% of 4 masks, gIoU 66.7, cIoU 66.7",
        "nearest to no object: 25.0% of 4 masks, gIoU 0.0, cIoU 0.0",
        "objects of 0 to 127 pixels (3), the object asked for: 33.3% of 3 masks, gIoU 100.0, cIoU 100.0",
        "objects of 128 to 255 pixels (1), the object asked for: 100.0% of 1 masks, gIoU 66.7, cIoU 66.7",
    ]
