"""The mask-merging quirks of LISA, Sa2VA and X-SAM against what their own steps do to the same polygons."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco

from perceptio_core.data.rle import decode, encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Scores
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.evaluation.benchmarks.res_protocols import PROTOCOLS, single_polygon_pixels, sum_through_run_lengths
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.params.evaluate import BenchmarkParams

BOOTSTRAP = Bootstrap(samples=50)
HEIGHT, WIDTH = 10, 30


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def write_refer(folder: Path, polygons: dict[int, list[list[float]]], refs: list[tuple[int, list[str]]]) -> Path:
    """One picture; annotations by id; references as (annotation, sentences), all in val."""
    folder.mkdir(exist_ok=True)
    annotations = [
        {"id": key, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": value} for key, value in polygons.items()
    ]
    images = [{"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    rows, sent_id = [], 0
    for ref_id, (ann_id, texts) in enumerate(refs):
        sentences = [{"sent_id": sent_id + i, "sent": text, "raw": text, "tokens": []} for i, text in enumerate(texts)]
        sent_id += len(texts)
        rows.append({"ref_id": ref_id, "ann_id": ann_id, "image_id": 7, "split": "val", "sentences": sentences})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(rows, protocol=2))
    return folder


def score(folder: Path, protocol: str, masks: dict[str, NDArray[np.bool_]]) -> Scores:
    benchmark = ReferringSegmentation(folder, split="val", protocol=protocol)
    answers = {
        item.item_id: Answer(
            item_id=item.item_id,
            raw="",
            text="",
            masks=(encode(masks[item.item_id]),) if item.item_id in masks else (),
        )
        for item in benchmark.items
    }
    return benchmark.score(answers, bootstrap=BOOTSTRAP)


def ciou(scores: Scores) -> float:
    return scores.headline[0].value


def lisa_steps(prediction: NDArray[np.uint8], target: NDArray[np.uint8]) -> float:
    """What `intersectionAndUnionGPU` counts for class 1, written from its description: histograms over the bins 0 and 1."""
    both = prediction[prediction == target]
    area_i, area_p, area_t = (
        torch.histc(torch.from_numpy(values.astype(np.float32).ravel()), bins=2, min=0, max=1)
        for values in (both, prediction, target)
    )
    return float(area_i[1] / (area_p[1] + area_t[1] - area_i[1]))


TWO = [rectangle(0, 0, 8, 10), rectangle(6, 0, 14, 10)]
"""Columns 0 to 13; 6 and 7 lie in both."""


def test_two_overlapping_polygons_predicted_perfectly(tmp_path: Path) -> None:
    folder = write_refer(tmp_path, {1: TWO}, [(1, ["it"])])
    perfect = np.zeros((HEIGHT, WIDTH), bool)
    perfect[:, :14] = True
    assert ciou(score(folder, "canonical", {"0/0": perfect})) == 100.0
    assert ciou(score(folder, "xsam", {"0/0": perfect})) == 100.0
    assert ciou(score(folder, "lisa", {"0/0": perfect})) == pytest.approx(100 * 6 / 7)  # the known 0.857
    assert ciou(score(folder, "sa2va", {"0/0": perfect})) == pytest.approx(100 * 6 / 7)


def test_the_run_length_coder_knows_changes_only(tmp_path: Path) -> None:
    # Column 2 is 1, column 3 is 2 down to row 4: between zeros, so it stays.
    polygons = [rectangle(2, 0, 4, 5), rectangle(3, 0, 4, 5)]
    made = decode(sum_through_run_lengths(polygons, HEIGHT, WIDTH))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:5, 2:4] = True
    np.testing.assert_array_equal(made, expected)
    folder = write_refer(tmp_path, {1: polygons}, [(1, ["it"])])
    assert ciou(score(folder, "lisa", {"0/0": expected})) == 50.0
    assert ciou(score(folder, "sa2va", {"0/0": expected})) == 100.0
    # Column 2 goes 1 1 1 2 2 0 ...: from the 0 on, the whole picture is inverted.
    made = decode(sum_through_run_lengths([rectangle(2, 0, 3, 5), rectangle(2, 3, 3, 5)], HEIGHT, WIDTH))
    assert made[:, 2].tolist() == [True] * 3 + [False] * 2 + [True] * 5
    assert made[:, 3:].all()
    assert not made[:, :2].any()


@pytest.mark.parametrize("seed", range(6))
def test_random_polygons_against_the_steps_of_the_projects(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = [(rng.random(8) * np.tile([WIDTH, HEIGHT], 4)).tolist() for _ in range(3)]
    summed = coco.decode(coco.frPyObjects(polygons, HEIGHT, WIDTH)).sum(axis=2).astype(np.uint8)
    predicted = rng.random((HEIGHT, WIDTH)) < 0.5
    folder = write_refer(tmp_path, {1: polygons}, [(1, ["it"])])
    expected = 100 * lisa_steps(predicted.astype(np.uint8), summed)
    assert ciou(score(folder, "lisa", {"0/0": predicted})) == pytest.approx(expected, rel=1e-6)
    coded = coco.decode(coco.encode(np.asfortranarray(summed)))
    expected = 100 * lisa_steps(predicted.astype(np.uint8), coded)
    assert ciou(score(folder, "sa2va", {"0/0": predicted})) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(decode(single_polygon_pixels(polygons, HEIGHT, WIDTH)), summed == 1)


def test_sa2va_states_both_treatments_of_an_absent_mask(tmp_path: Path) -> None:
    folder = write_refer(tmp_path, {1: [rectangle(0, 0, 10, 10)]}, [(1, ["it", "that"])])
    half = np.zeros((HEIGHT, WIDTH), bool)
    half[:, :5] = True
    scores = score(folder, "sa2va", {"0/0": half})
    assert ciou(scores) == 25.0  # 50 / (100 + 100)
    (skipped,) = scores.breakdown
    assert (skipped.name, skipped.value, skipped.n) == ("res_ciou/absent_skipped", 50.0, 1)
    assert score(folder, "canonical", {"0/0": half}).breakdown == []


def test_xsam_counts_distinct_lower_cased_sentences_of_the_last_reference(tmp_path: Path) -> None:
    box = [rectangle(0, 0, 10, 10)]
    refs = [(1, ["old"]), (1, ["The Box", "the box", "left"]), (2, ["the box"])]
    folder = write_refer(tmp_path, {1: box, 2: box}, refs)
    items = ReferringSegmentation(folder, split="val", protocol="xsam").items
    assert [(item.item_id, item.expected) for item in items] == [("1/1", "the box"), ("1/3", "left"), ("2/4", "the box")]
    assert items[0].question == "Please segment the box in this image."
    assert len(ReferringSegmentation(folder, split="val").items) == 5


def test_every_protocol_says_what_it_is_and_is_a_parameter(tmp_path: Path) -> None:
    folder = write_refer(tmp_path / "refcoco", {1: TWO}, [(1, ["it"])])
    for name, words in {"lisa": "LISA's", "sa2va": "Sa2VA's", "xsam": "X-SAM's", "canonical": "by union"}.items():
        assert words in score(folder, name, {}).headline[0].protocol
    assert "1 of the split's 10834 expressions" in score(folder, "canonical", {}).headline[0].protocol
    entry: dict[str, Any] = {"kind": "refer", "path": "refcoco", "split": "val"}
    for name in PROTOCOLS:
        BenchmarkParams.from_mapping({**entry, "protocol": name}, where="t")
    with pytest.raises(ValueError, match="protocol"):
        BenchmarkParams.from_mapping({**entry, "protocol": "lisa2"}, where="t")
    with pytest.raises(ValueError, match="refer only"):
        BenchmarkParams.from_mapping({"kind": "hardblink", "path": "h", "protocol": "lisa"}, where="t")
