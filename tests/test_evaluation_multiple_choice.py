"""HardBLINK, MMBench and SEED-Image on hand-worked files and on the real ones."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from official_files import answers, by_name, png, rotations, write_hardblink, write_jsonl, write_mmbench, write_seed, write_tsv
from perceptio_core.data.images import open_image
from perceptio_core.evaluation.benchmarks.ai2d import AI2D
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark
from perceptio_core.evaluation.benchmarks.hardblink import SHORT_CUTS, HardBlink, _picked
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(samples=200)


def say_expected(benchmark: Benchmark) -> dict[str, Answer]:
    return answers({item.item_id: f"({item.expected})" for item in benchmark.items})


def real(name: str) -> Path:
    root = os.environ.get("PERCEPTIO_REALDATA")
    if not root:
        pytest.skip("PERCEPTIO_REALDATA is not set: the real benchmark files are not at hand")
    return Path(root) / name


# ---------------------------------------------------------------------------------------------------------- HardBLINK


def test_hardblink_by_hand(tmp_path: Path) -> None:
    benchmark = HardBlink(write_hardblink(tmp_path, markers=True))
    said = {
        **{"3/0": "(A)", "3/1": "A or B", "3/2": "the closest is B", "3/3": "B"},  # strict 2 of 4, lenient 3 of 4
        **{"4/0": "D", "4/1": "d.", "4/2": "(D)", "4/3": "(C)"},  # 4 of 4
        **{"5/0": "?", "5/1": "(B)", "5/2": "(E) (B)", "5/3": "no idea"},  # strict 0, lenient 1
    }
    scores = benchmark.score(answers(said), bootstrap=BOOTSTRAP)
    metrics = by_name(scores.headline + scores.baselines)
    assert [metrics[f"hardblink_{n}"].value for n in (3, 4, 5)] == [50.0, 100.0, 0.0]
    assert [metrics[f"hardblink_{n}"].n for n in (3, 4, 5)] == [4, 4, 4]
    assert metrics["hardblink_mean"].value == 50.0
    assert metrics["hardblink_mean"].n == 12
    assert metrics["hardblink_lenient_mean"].value == pytest.approx((75 + 100 + 25) / 3)
    assert metrics["hardblink_majority"].value == pytest.approx((75 + 75 + 25) / 3)
    # lowest: C, D, E -> 0, 75, 25; biggest: B -> 25, 0, 25; brightest: A -> 75, 0, 25. Both reach 100 / 3.
    assert metrics["hardblink_shortcut"].value == pytest.approx(100 / 3)
    parts = by_name(scores.breakdown)
    assert parts["hardblink_majority_5"].value == 25.0
    assert parts["hardblink_shortcut_biggest_object"].value == pytest.approx(50 / 3)
    # Ties: all but B have the smallest object, all have one.
    assert parts["hardblink_shortcut_smallest_object"].value == pytest.approx((75 / 2 + 100 / 3 + 75 / 4) / 3)
    assert parts["hardblink_shortcut_any_object"].value == pytest.approx((100 / 3 + 100 / 4 + 100 / 5) / 3)
    assert (scores.unparsed, scores.parsable) == (4, 12)
    assert scores.correct["3/0"] == 1.0
    assert scores.correct["3/1"] == 0.0


def guessed(benchmark: Benchmark, options: Mapping[str, str], *, names: Sequence[str], times: int = 800) -> dict[str, float]:
    """The mean of metrics when every item is answered by one of its options at random.

    Args:
        benchmark: to be answered.
        options: letters by item_id.
        names: of the metrics.
        times: how often all items are answered.
    """
    rng = np.random.default_rng(0)
    sums = dict.fromkeys(names, 0.0)
    for _ in range(times):
        said = answers({item: str(rng.choice(list(letters))) for item, letters in options.items()})
        scores = benchmark.score(said, bootstrap=Bootstrap(samples=1))
        found = by_name([*scores.headline, *scores.breakdown])
        sums = {name: total + found[name].value for name, total in sums.items()}
    return {name: total / times for name, total in sums.items()}


def test_chance_on_hardblink_is_what_random_letters_get(tmp_path: Path) -> None:
    benchmark = HardBlink(write_hardblink(tmp_path, markers=False))
    options = {item.item_id: "ABCDE"[: int(item.item_id[0])] for item in benchmark.items}
    names = ["hardblink_3", "hardblink_5", "hardblink_mean", "hardblink_lenient_mean"]
    scores = by_name(benchmark.score(say_expected(benchmark), bootstrap=BOOTSTRAP).headline)
    assert scores["hardblink_5"].chance == 20.0
    for name, mean in guessed(benchmark, options, names=names).items():
        assert scores[name].chance == pytest.approx(mean, abs=2.5), name
    assert scores["hardblink_mean"].low == pytest.approx(75.75, abs=0.01)  # all right: 12 of 12, by Wilson
    assert scores["hardblink_3"].low == pytest.approx(51.01, abs=0.01)


def test_the_ground_is_no_small_object() -> None:
    points = [{"letter": "A", "area": 0}, {"letter": "B", "area": 5}, {"letter": "C", "area": 9}, {"letter": "D", "area": 5}]
    assert [_picked(points, SHORT_CUTS["smallest object"], letter) for letter in "ABCD"] == [0, 0.5, 0, 0.5]
    assert [_picked(points, SHORT_CUTS["any object"], letter) for letter in "ABCD"] == [0, 1 / 3, 1 / 3, 1 / 3]
    bare = [{"letter": letter, "area": 0} for letter in "AB"]
    assert [_picked(bare, SHORT_CUTS["smallest object"], letter) for letter in "AB"] == [0.5, 0.5]


def test_hardblink_without_markers_has_no_short_cut(tmp_path: Path) -> None:
    benchmark = HardBlink(write_hardblink(tmp_path, markers=False))
    scores = benchmark.score(say_expected(benchmark), bootstrap=BOOTSTRAP)
    names = by_name(scores.headline + scores.baselines)
    assert "hardblink_majority" in names
    assert "hardblink_shortcut" not in names
    assert names["hardblink_mean"].value == 100.0


def test_hardblink_refuses_what_does_not_match(tmp_path: Path) -> None:
    write_hardblink(tmp_path, markers=True)
    file = tmp_path / "answers/blink_4pointscenter_answers.jsonl"
    write_jsonl(file, [{"question_id": i, "text": "(A)"} for i in range(3)])
    with pytest.raises(ValueError, match=r"blink_4pointscenter_answers.*partner"):
        HardBlink(tmp_path)
    write_jsonl(file, [{"question_id": i, "text": "(E)"} for i in range(4)])
    with pytest.raises(ValueError, match="none of ABCD"):
        HardBlink(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="no such file"):
        HardBlink(tmp_path)


def test_hardblink_refuses_a_path_that_leads_out(tmp_path: Path) -> None:
    write_hardblink(tmp_path, markers=False)
    file = tmp_path / "questions/blink_3pointscenter_questions.jsonl"
    write_jsonl(file, [{"question_id": i, "image": "../../secret.png", "text": "Which?"} for i in range(4)])
    with pytest.raises(ValueError, match="leads out of"):
        HardBlink(tmp_path)


def test_real_hardblink_and_its_published_majority() -> None:
    benchmark = HardBlink(real("hardblink"))
    assert len(benchmark.items) == 372
    assert all(isinstance(item.image, Path) and item.image.is_file() for item in benchmark.items)
    scores = benchmark.score(say_expected(benchmark), bootstrap=BOOTSTRAP)
    metrics, parts = by_name(scores.headline), by_name(scores.breakdown)
    assert metrics["hardblink_mean"].value == 100.0
    assert [round(parts[f"hardblink_majority_{n}"].value, 1) for n in (3, 4, 5)] == [37.9, 27.4, 21.8]
    assert {len(HardBlink(real("hardblink"), limit=30).items)} == {30}


# ------------------------------------------------------------------------------------------------------------ MMBench


def test_mmbench_circular_by_hand(tmp_path: Path) -> None:
    two = {"split": "dev", "l2-category": "coarse", "category": "scene"}
    three = {"split": "test", "l2-category": "fine", "category": "count"}
    rows = [
        *rotations(1, ["cat", "None"], "None", png(1), **two),
        *rotations(2, ["one", "two", "three"], "two", png(2), **three),
        *rotations(3, ["red", "green"], "red", "1", **two),
    ]
    benchmark = MMBench(write_mmbench(tmp_path / "mini.tsv", rows))
    assert len(benchmark.items) == 7
    right = {item.item_id: item.expected for item in benchmark.items}
    # Question 2 fails by one of its three rotations, question 3 by an unparsable answer.
    said = {**right, "1000002": "A" if right["1000002"] != "A" else "B", "3": "dunno"}
    scores = benchmark.score(answers(said), bootstrap=BOOTSTRAP)
    (metric,) = scores.headline
    assert (metric.value, metric.n) == (pytest.approx(100 / 3), 3)
    (longest,) = scores.baselines  # right of the first question alone
    assert (longest.name, longest.value, longest.n) == ("mmbench_longest", pytest.approx(100 / 3), 3)
    assert (scores.unparsed, scores.parsable) == (1, 7)
    parts = by_name(scores.breakdown)
    assert parts["mmbench/split/dev"].value == 50.0
    assert parts["mmbench/split/test"].value == 0.0
    assert metric.chance == pytest.approx((25 + 100 / 27 + 25) / 3)
    assert parts["mmbench/split/dev"].chance == 25.0
    options = {item: "ABC" if item.endswith("2") else "AB" for item in right}
    assert guessed(benchmark, options, names=["mmbench"])["mmbench"] == pytest.approx(metric.chance, abs=2)
    assert parts["mmbench/l2_category/coarse"].n == 2
    assert parts["mmbench/category/count"].n == 1
    assert sum(scores.correct.values()) == 5
    # An option called None is text, not a missing value; the text of an option counts as the option.
    assert "B. None" in benchmark.items[0].question
    assert 'Say "it"\nin two lines' in benchmark.items[0].question
    scores = benchmark.score(answers({**right, "1": "None", "1000001": "None"}), bootstrap=BOOTSTRAP)
    assert scores.headline[0].value == 100.0
    # A pointer gives the picture it points at.
    images = {item.item_id: item.image for item in benchmark.items}
    assert images["3"] == images["1"] == images["1000001"] != images["2"]
    # A limit keeps questions whole; a split keeps its rows.
    assert [item.item_id for item in MMBench(tmp_path / "mini.tsv", limit=1).items] == ["1", "1000001"]
    assert len(MMBench(tmp_path / "mini.tsv", split="test").items) == 3
    with pytest.raises(ValueError, match="no rows with split 'val'"):
        MMBench(tmp_path / "mini.tsv", split="val")


def test_a_test_set_without_answers_can_be_asked_but_not_scored(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in rotations(1, ["cat", "dog"], "dog", png())]
    file = write_tsv(tmp_path / "MMBench_TEST_EN.tsv", rows)
    benchmark = MMBench(file)
    assert [item.expected for item in benchmark.items] == ["", ""]
    scores = benchmark.score(answers({"1": "A", "1000001": "?"}), bootstrap=BOOTSTRAP)
    assert (scores.headline, scores.breakdown, scores.unparsed) == ([], [], 1)
    assert scores.correct == {"1": None, "1000001": None}
    with pytest.raises(ValueError, match=r"columns \['answer'\] are missing"):
        AI2D(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "77"}, "points at no row"),
        ({"image": "!" * 100}, "not base64"),
        ({"answer": "D"}, "none of the options"),
        ({"index": "x"}, "not a number"),
    ],
)
def test_mmbench_refuses(tmp_path: Path, change: dict[str, str], message: str) -> None:
    row = {**rotations(1, ["cat", "dog"], "dog", png())[0], **change}
    with pytest.raises(ValueError, match=message):
        MMBench(write_mmbench(tmp_path / "bad.tsv", [row]))
    with pytest.raises(ValueError, match="occurs twice"):
        MMBench(write_mmbench(tmp_path / "bad.tsv", rotations(1, ["cat", "dog"], "dog", png())[:1] * 2))


def test_real_mmbench_sample() -> None:
    benchmark = MMBench(real("mmbench/mmbench_samples_en.tsv"))
    assert len(benchmark.items) == 20
    for item in benchmark.items:
        assert open_image(item.image, max_pixels=10**7).width > 10
    code = benchmark.items[0].question
    assert "A. for x in range(6):\n     print(x)" in code
    assert '"brand": "Ford"' in code
    assert "D." not in benchmark.items[6].question  # a question with three options
    assert benchmark.score(say_expected(benchmark), bootstrap=BOOTSTRAP).headline[0].value == 100.0


# --------------------------------------------------------------------------------------------------------- SEED-Image


def test_seed_image_by_hand(tmp_path: Path) -> None:
    (tmp_path / "SEED-Bench-image").mkdir()
    (tmp_path / "SEED-Bench-image/pic_1.jpg").write_bytes(b"")
    (tmp_path / "SEED-Bench-image/pic_2").write_bytes(b"")
    benchmark = SeedImage(write_seed(tmp_path))
    assert [item.item_id for item in benchmark.items] == ["100", "101", "102"]  # the video question is left out
    assert [Path(str(item.image)).name for item in benchmark.items] == ["pic_0", "pic_1.jpg", "pic_2"]
    said = answers({"100": "A", "101": "two", "102": "maybe"})
    scores = benchmark.score(said, bootstrap=BOOTSTRAP)
    (metric,) = scores.headline
    assert (metric.name, metric.value, metric.n) == ("seed_image", pytest.approx(200 / 3), 3)
    assert "SEED-Image" in metric.protocol
    assert by_name(scores.breakdown)["seed_image/Instances Counting"].value == 100.0
    assert (scores.unparsed, scores.parsable) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "E"}, "none of A, B, C, D"),
        ({"data_type": "Single Image"}, "data_type"),
        ({"data_id": "/etc/x"}, "leads out of"),
        ({"question_id": "1"}, "occurs twice"),
    ],
)
def test_seed_refuses(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeedImage(write_seed(tmp_path, changes))


def test_seed_bench_2_is_not_taken_for_the_first() -> None:
    with pytest.raises(ValueError, match=r"SEED-Bench-2_sample_rows\.json"):
        SeedImage(real("seedbench/SEED-Bench-2_sample_rows.json"))
