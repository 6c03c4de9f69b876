"""gRefCOCO by hand and against the counting of the official evaluator, written from its description."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from official_files import GREF_HEIGHT, GREF_WIDTH, GREFS, gref_columns, write_grefcoco
from perceptio_core.data.rle import decode, encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer
from perceptio_core.evaluation.benchmarks.grefcoco import GeneralisedReferring
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(samples=100)


def answers(benchmark: GeneralisedReferring, masks: list[tuple[NDArray[np.bool_], ...]]) -> dict[str, Answer]:
    return {
        item.item_id: Answer(item_id=item.item_id, raw="", text="", masks=tuple(encode(mask) for mask in given))
        for item, given in zip(benchmark.items, masks, strict=True)
    }


def test_by_hand(tmp_path: Path) -> None:
    benchmark = GeneralisedReferring(write_grefcoco(tmp_path, GREFS), split="val")
    assert [item.item_id for item in benchmark.items] == ["0/10", "1/11", "2/12", "3/13", "4/14"]
    assert benchmark.items[0].question == "Please segment s0 in this image."
    assert [int(decode(item.truth or {}).sum()) for item in benchmark.items] == [200, 100, 0, 0, 100]
    said = answers(
        benchmark,
        [
            (gref_columns(0, 10), gref_columns(5, 15)),  # two masks, by union 0-14: 150 / 200
            (gref_columns(20, 30),),  # 100 / 100
            (gref_columns(3, 3),),  # a mask without a pixel claims nothing: right
            (gref_columns(0, 5),),  # 50 pixels where nothing is meant
            (),  # nothing claimed where something is meant: 0 / 100
        ],
    )
    scores = benchmark.score(said, bootstrap=BOOTSTRAP)
    values = {metric.name: (metric.value, metric.n) for metric in scores.headline}
    assert values == {
        "grefcoco_ciou": (pytest.approx(100 * 250 / (200 + 100 + 0 + 50 + 100)), 5),
        "grefcoco_giou": (pytest.approx(100 * (0.75 + 1 + 1 + 0 + 0) / 5), 5),
        "grefcoco_n_acc": (50.0, 2),
        "grefcoco_t_acc": (pytest.approx(200 / 3), 3),
    }
    assert all((m.low or 0) <= m.value <= (m.high or 0) for m in scores.headline)
    assert "2 of them mean nothing" in scores.headline[0].protocol
    assert scores.main == "grefcoco_ciou"


@pytest.mark.parametrize("seed", range(4))
def test_ciou_and_giou_are_those_of_the_official_counting(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    refs = [{"ann_id": [[-1], [1], [2, 3]][rng.integers(3)]} for _ in range(12)]
    benchmark = GeneralisedReferring(write_grefcoco(tmp_path, refs), split="val")
    masks = [() if rng.random() < 0.4 else (rng.random((GREF_HEIGHT, GREF_WIDTH)) < 0.3,) for _ in refs]
    total_iou, total_i, total_u = 0.0, 0, 0
    for item, given in zip(benchmark.items, masks, strict=True):
        truth = decode(item.truth or {})
        predicted = given[0] if given else np.zeros_like(truth)
        says_nothing, intersection, union = not given, (predicted & truth).sum(), (predicted | truth).sum()
        if not truth.any():
            total_iou += says_nothing
            total_u += 0 if says_nothing else union
        else:
            intersection = 0 if says_nothing else intersection
            total_iou += intersection / union
            total_i += intersection
            total_u += union
    metrics = benchmark.score(answers(benchmark, masks), bootstrap=BOOTSTRAP).headline
    assert metrics[0].value == pytest.approx(100 * total_i / total_u)
    assert metrics[1].value == pytest.approx(100 * total_iou / len(refs))


def test_a_target_without_pixels_is_not_found_by_saying_nothing(tmp_path: Path) -> None:
    benchmark = GeneralisedReferring(write_grefcoco(tmp_path, [{"ann_id": [4]}, {"ann_id": [1]}]), split="val")
    scores = benchmark.score(answers(benchmark, [(), (gref_columns(0, 10),)]), bootstrap=BOOTSTRAP)
    assert [metric.value for metric in scores.headline] == [100.0, 50.0, 50.0]  # cIoU, gIoU, T-acc


def test_a_split_without_such_expressions_has_no_n_acc(tmp_path: Path) -> None:
    benchmark = GeneralisedReferring(write_grefcoco(tmp_path, GREFS), split="testA", name="grefcoco_testa")
    names = [metric.name for metric in benchmark.score(answers(benchmark, [()]), bootstrap=BOOTSTRAP).headline]
    assert names == ["grefcoco_testa_ciou", "grefcoco_testa_giou", "grefcoco_testa_t_acc"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_id": [9]}, r"reference 0: ann_id 9 is not in instances.json; \[-1\] stands for nothing"),
        ({"ann_id": [1, -1]}, "ann_id -1 is not in"),
        ({"image_id": 8}, "reference 0: lacks"),
        ({"split": "test"}, r"no expressions in split 'val'; it has \['test'\]"),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneralisedReferring(write_grefcoco(tmp_path, [{"ann_id": [1], **change}]), split="val")
    (tmp_path / "grefs(unc).json").write_text("{")
    with pytest.raises(ValueError, match=r"grefs\(unc\)\.json"):
        GeneralisedReferring(tmp_path, split="val")
