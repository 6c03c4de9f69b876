"""Own questions and masks: answers by rule, and scores worked by hand and again from the files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer
from perceptio_core.evaluation.benchmarks.load import load_benchmark
from perceptio_core.evaluation.benchmarks.own import OwnMasks, OwnQuestions
from perceptio_core.evaluation.benchmarks.short_answers import folded, is_contained, is_exact, kind_of, most_common
from perceptio_core.evaluation.interchange.export import export
from perceptio_core.evaluation.interchange.predictions import read_predictions
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.params.evaluate import BenchmarkParams

BOOTSTRAP = Bootstrap(samples=200, seed=0)


@pytest.mark.parametrize(
    ("said", "expected", "exact", "contained"),
    [
        ("Yes", "yes", True, True),
        ("Yes.", "yes", True, True),
        ("  two\n dogs ", "Two dogs", True, True),
        ("**Red**", "red", True, True),
        ("It is red.", "red", False, True),
        ("It is not red.", "red", False, True),  # what the rule cannot tell
        ("Reddish", "red", False, False),
        ("No", "not", False, False),
        ("12", "1", False, False),
        ("-5", "5", False, True),
        ("50%", "50", False, True),
        ("50 %", "50%", False, False),
        ("A dog", "dog", False, True),
        ("3.5", "3", False, True),
        ("", "yes", False, False),
        ("C++", "C++", True, True),
        ("It is C++, I think", "c++", False, True),
        ("答案是红色。", "红色", False, True),
        ("红色。", "红色", True, True),
        ("빨간색입니다", "빨간색", False, True),
        ("ＹＥＳ", "yes", True, True),
        ("???", "?", False, True),
        ("STRASSE", "straße", True, True),
    ],
)
def test_when_an_answer_is_right(said: str, expected: str, *, exact: bool, contained: bool) -> None:
    assert (is_exact(said, expected), is_contained(said, expected)) == (exact, contained)


def test_kinds_and_the_most_common_answer() -> None:
    kinds = [kind_of(answer) for answer in ("Yes.", "no", "12", "-1.5", "50%", "1,000", "three", "a dog", "none", "eleven")]
    assert kinds == ["yes_no"] * 2 + ["number"] * 5 + ["other"] * 3
    assert most_common(["b", "A", "a.", "B", "c"]) == "a", "of two the first in the alphabet"
    assert folded("...") == "...", "nothing but punctuation stays what it is"


def rows(folder: Path, content: list[dict[str, Any]]) -> BenchmarkParams:
    folder.mkdir(exist_ok=True)
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    for row in content:
        Image.new("RGB", (8, 6)).save(folder / row["image"])
    values = {"kind": "questions", "path": "q.jsonl", "images": "."}
    return BenchmarkParams.from_mapping(values, where="test")


def said(benchmark: OwnQuestions | OwnMasks, texts: list[str]) -> dict[str, Answer]:
    return {
        item.item_id: Answer(item_id=item.item_id, raw=text, text=text)
        for item, text in zip(benchmark.items, texts, strict=True)
    }


def test_own_questions_by_hand(tmp_path: Path) -> None:
    """Five questions: 3 exact, 4 contained; always "yes" 2 of 5; by kind "yes", "2" and "a cat": 4 of 5."""
    content = [
        {"image": "a.png", "question": "Is it?", "answer": "yes"},
        {"image": "a.png", "question": "Is that?", "answer": "yes"},
        {"image": "b.png", "question": "Is this?", "answer": "no"},
        {"image": "b.png", "question": "How many?", "answer": "2"},
        {"image": "c.png", "question": "What?", "answer": "A cat."},
    ]
    benchmark = load_benchmark(rows(tmp_path, content), root=tmp_path)
    assert isinstance(benchmark, OwnQuestions)
    assert [(item.item_id, item.question, item.expected) for item in benchmark.items][-1] == ("questions/4", "What?", "A cat.")
    scores = benchmark.score(said(benchmark, ["Yes.", "no", "No", "There are 2", "a cat"]), bootstrap=BOOTSTRAP)
    found = {metric.name: metric for metric in [*scores.headline, *scores.baselines, *scores.breakdown]}
    assert {name: (round(metric.value, 6), metric.n) for name, metric in found.items()} == {
        "questions_exact": (60.0, 5),
        "questions_contained": (80.0, 5),
        "questions_majority": (40.0, 5),
        "questions_majority_by_kind": (80.0, 5),
        "questions_exact/yes_no": (round(200 / 3, 6), 3),
        "questions_contained/yes_no": (round(200 / 3, 6), 3),
        "questions_exact/number": (0.0, 1),
        "questions_contained/number": (100.0, 1),
        "questions_exact/other": (100.0, 1),
        "questions_contained/other": (100.0, 1),
    }
    assert scores.correct == {f"questions/{i}": float(i in (0, 2, 4)) for i in range(5)}
    # Wilson's bounds p solve (p - 3/5)^2 = z^2 p (1 - p) / 5.
    for bound in (found["questions_exact"].low, found["questions_exact"].high):
        assert bound is not None
        p = bound / 100
        assert (p - 0.6) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 5, rel=1e-6)
    assert "always 'yes': these questions' own most frequent answer" in found["questions_majority"].protocol


def test_the_baseline_knows_the_training_rows_alone(tmp_path: Path) -> None:
    content = [{"image": f"{i}.png", "question": "?", "answer": "yes" if i % 2 else "no"} for i in range(40)]
    whole = rows(tmp_path, content)
    benchmark = OwnQuestions(whole.model_copy(update={"validation_share": 0.25}), root=tmp_path)
    asked = {int(item.item_id.partition("/")[2]) for item in benchmark.items}
    left = [row["answer"] for i, row in enumerate(content) if i not in asked]
    assert 3 <= len(asked) <= 20
    assert len(asked) + len(left) == 40
    always = max(("no", "yes"), key=left.count)
    scores = benchmark.score(said(benchmark, [always] * len(asked)), bootstrap=BOOTSTRAP)
    majority = next(metric for metric in scores.baselines if metric.name == "questions_majority")
    assert majority.value == scores.headline[0].value
    assert f"always {always!r}: the training rows' most frequent answer" in majority.protocol


def test_own_masks_by_hand(tmp_path: Path) -> None:
    """IoUs 1/3, 1 and (no mask) 0: gIoU 4/9; cIoU (6 + 12 + 0) / (18 + 12 + 24)."""
    content = [{"image": f"{i}.png", "question": "the dog", "mask": f"m{i}.png"} for i in range(3)]
    content.append({"image": "0.png", "question": "Is it?", "answer": "yes", "mask": None})  # type: ignore[dict-item]
    params = rows(tmp_path, content).model_copy(update={"kind": "masks"})
    for number, columns in enumerate((slice(0, 2), slice(2, 4), slice(0, 4))):
        truth_HW = np.zeros((6, 8), np.uint8)
        truth_HW[:, columns] = 255
        Image.fromarray(truth_HW).save(tmp_path / f"m{number}.png")
    benchmark = load_benchmark(params, root=tmp_path)
    assert isinstance(benchmark, OwnMasks)
    assert [item.question for item in benchmark.items] == ["Please segment the dog in this image."] * 3
    predicted = []
    for columns in (slice(1, 3), slice(2, 4)):
        mask_HW = np.zeros((6, 8), bool)
        mask_HW[:, columns] = True
        predicted.append((encode(mask_HW),))
    answers = {
        item.item_id: Answer(item_id=item.item_id, raw="", text="", masks=masks)
        for item, masks in zip(benchmark.items, [*predicted, ()], strict=True)
    }
    scores = benchmark.score(answers, bootstrap=BOOTSTRAP)
    values = {metric.name: metric.value for metric in scores.headline}
    assert values == pytest.approx({"masks_ciou": 100 * 18 / 54, "masks_giou": 100 * 4 / 9})
    assert list(scores.correct.values()) == pytest.approx([1 / 3, 1.0, 0.0])
    assert "1 answers without a mask count as empty masks" in scores.headline[0].protocol
    export(benchmark, answers, tmp_path / "out.jsonl")
    again = read_predictions(tmp_path / "out.jsonl", benchmark)
    assert {key: answer.masks for key, answer in again.items()} == {key: answer.masks for key, answer in answers.items()}


def test_objects_of_a_coco_file_are_asked_by_category(tmp_path: Path) -> None:
    boxes = [[[0, 0, 4, 0, 4, 6, 0, 6]], [[4, 0, 8, 0, 8, 6, 4, 6]]]
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 1, "segmentation": box, "bbox": [4 * i, 0, 4, 6]}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "wall"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    values = {"kind": "masks", "name": "objects", "path": "c.json", "images": "."}
    benchmark = OwnMasks(BenchmarkParams.from_mapping(values, where="test"), root=tmp_path)
    (item,) = benchmark.items
    assert (item.item_id, item.question) == ("objects/7/1", "Please segment wall in this image.")
    answer = Answer(item_id=item.item_id, raw="", text="", masks=(encode(np.ones((6, 8), bool)),))
    scores = benchmark.score({item.item_id: answer}, bootstrap=BOOTSTRAP)
    assert {metric.name: metric.value for metric in scores.headline} == {"objects_ciou": 100.0, "objects_giou": 100.0}


def test_a_table_without_what_is_asked_is_refused(tmp_path: Path) -> None:
    params = rows(tmp_path, [{"image": "a.png", "question": "?", "answer": "x"}])
    with pytest.raises(ValueError, match=r"q\.jsonl: no validation mask that can be read"):
        OwnMasks(params, root=tmp_path)
    first = [{"image": "a.png", "question": "?", "answer": "x"}, {"image": "a.png", "question": "?", "answer": ""}]
    assert len(OwnQuestions(rows(tmp_path, first), root=tmp_path).items) == 1
    with pytest.raises(ValueError, match=r"q\.jsonl: no validation question that can be read"):
        OwnQuestions(rows(tmp_path, first[1:]), root=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "mme", "path": "mme", "masks": "m"}, "masks and validation_share are allowed for questions and masks only"),
        ({"kind": "mme", "path": "mme", "validation_share": 0.2}, "masks and validation_share are allowed for questions and"),
        ({"kind": "questions", "path": "q.csv", "validation_share": 1.0}, "validation_share"),
        ({"kind": "questions", "path": "q.csv", "masks": "../m"}, "below the data root"),
        ({"kind": "questions", "path": "q.csv", "split": "val"}, "split is allowed for"),
    ],
)
def test_parameters_refuse(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchmarkParams.from_mapping(values, where="test")
