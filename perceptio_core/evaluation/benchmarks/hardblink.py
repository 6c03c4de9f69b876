"""HardBLINK: which of 3, 4 or 5 circled points is the closest to the camera (AURORA, arXiv 2412.03548).

Official files: ``questions/blink_{n}pointscenter_questions.jsonl`` {question_id, image, text},
``answers/blink_{n}pointscenter_answers.jsonl`` {question_id, text "(A)"}, ``images/blink{n}pointscenter/``.

Where a folder ``unmarked`` (ours) holds the same pictures without marks, the depth teacher is shown these.

Scores: strict (the one letter that the answer settles on; unparsable is wrong) and lenient (the public scorer: the right
letter anywhere among the letters that the answer names). Beside them what needs no depth: the majority letter, and,
where a ``markers.jsonl`` {question_id, subset, points: [{letter, x, y, area, brightness}]} lies in the folder (ours),
the image-plane short cuts: lowest marker, marker on the biggest or on the smallest object, brightest, darkest marker, and
one at random among those on any object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.records import inside, spread
from perceptio_core.evaluation.answers.options import RULE, mentioned_letters, parse_option
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, accuracy, grouped, most_frequent, said, unique
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.jsonl import read_jsonl
from perceptio_core.metrics import Metric

SUBSETS = (3, 4, 5)
SHORT_CUTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "lowest marker": lambda point: float(point["y"]),  # rows count downwards
    "biggest object": lambda point: float(point["area"]),
    "smallest object": lambda point: -float(point["area"]) if point["area"] else -math.inf,  # ground has area 0
    "brightest marker": lambda point: float(point["brightness"]),
    "darkest marker": lambda point: -float(point["brightness"]),
    "any object": lambda point: float(point["area"] > 0),
}
"""What each picks the marker with the highest value of; among several such, one at random."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    subset: int
    item: Item
    points: Sequence[Mapping[str, Any]] | None


class HardBlink:
    """The three subsets below one folder, or some of them.

    Raises:
        ValueError: a file is missing or malformed, or questions and answers do not match.
    """

    def __init__(self, folder: Path, *, limit: int | None = None, subsets: Sequence[int] = SUBSETS) -> None:
        points = _read_points(folder)
        questions = [question for n in subsets for question in _read_subset(folder, n, points)]
        self._questions = spread(questions, limit)

    @property
    def items(self) -> list[Item]:
        """The questions, subset by subset."""
        return [question.item for question in self._questions]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """hardblink_{3,4,5}, _mean, _lenient_mean, _majority and, with a markers file, _shortcut."""
        strict: dict[int, list[bool]] = {}
        lenient: dict[int, list[bool]] = {}
        unparsed = 0
        for question in self._questions:
            letters = "ABCDE"[: question.subset]
            text = answers[question.item.item_id].text
            parsed = parse_option(text, letters=letters)
            unparsed += parsed is None
            named = mentioned_letters(text, letters=letters) | ({parsed} if parsed else set())
            strict.setdefault(question.subset, []).append(parsed == question.item.expected)
            lenient.setdefault(question.subset, []).append(question.item.expected in named)
        rule = f"HardBLINK, generated answers, strict: {RULE}, {unparsed} of {len(self._questions)} unparsed count as wrong"
        headline = [
            accuracy(
                hits,
                name=f"hardblink_{n}",
                protocol=rule,
                bootstrap=bootstrap,
                unit=f"{n} points, per question",
                chance=100.0 / n,
            )
            for n, hits in strict.items()
        ]
        headline.append(_mean(strict, name="hardblink_mean", protocol=rule, bootstrap=bootstrap))
        headline.append(
            _mean(
                lenient,
                name="hardblink_lenient_mean",
                protocol="HardBLINK, lenient: the right letter is among the letters that the answer names",
                bootstrap=bootstrap,
            )
        )
        baselines, parts = self._baselines(bootstrap)
        correct = [hit for hits in strict.values() for hit in hits]
        return Scores(
            headline=headline,
            main="hardblink_mean",
            baselines=baselines,
            breakdown=parts,
            correct={item.item_id: float(hit) for item, hit in zip(self.items, correct, strict=True)},
            unparsed=unparsed,
            parsable=len(self._questions),
        )

    def _baselines(self, bootstrap: Bootstrap) -> tuple[list[Metric], list[Metric]]:
        """The majority letter and the best short cut; and both taken apart."""
        by_subset: dict[int, list[_Question]] = grouped(self._questions, lambda question: question.subset)
        majority: dict[int, list[bool]] = {}
        parts = []
        for n, questions in by_subset.items():
            letter = most_frequent(question.item.expected for question in questions)
            majority[n] = [question.item.expected == letter for question in questions]
            parts.append(
                Metric(
                    name=f"hardblink_majority_{n}",
                    value=100.0 * float(np.mean(majority[n])),
                    low=None,
                    high=None,
                    n=len(questions),
                    protocol=f"HardBLINK, {n} points: always {letter}",
                )
            )
        # The majority letter is picked on the very questions it is scored on: an interval would mean nothing.
        value = float(np.mean([100.0 * np.mean(hits) for hits in majority.values()]))
        headline = [
            Metric(
                name="hardblink_majority",
                value=value,
                low=None,
                high=None,
                n=len(self._questions),
                protocol="HardBLINK, always the most frequent letter of the subset; mean of the subsets",
            )
        ]
        if any(question.points is None for question in self._questions):
            return headline, parts
        cuts = []
        for label, key in SHORT_CUTS.items():
            hits = {
                n: [_picked(question.points or (), key, question.item.expected) for question in questions]
                for n, questions in by_subset.items()
            }
            name = f"hardblink_shortcut_{label.replace(' ', '_')}"
            cuts.append(_mean(hits, name=name, protocol=f"HardBLINK short cut: {label}", bootstrap=bootstrap))
        best = max(cuts, key=lambda metric: metric.value)
        headline.append(
            Metric(
                name="hardblink_shortcut",
                value=best.value,
                low=best.low,
                high=best.high,
                n=best.n,
                protocol=f"{best.protocol} (the best of {', '.join(SHORT_CUTS)})",
            )
        )
        return headline, parts + cuts


def _mean(hits: Mapping[int, Sequence[float]], *, name: str, protocol: str, bootstrap: Bootstrap) -> Metric:
    """Mean of the subsets' accuracies; the subsets are resampled each by itself. Chance is one of n letters."""
    strata = [np.asarray(values, dtype=np.float64)[:, None] for values in hits.values()]
    low, high = bootstrap.interval(strata, lambda means: 100.0 * np.mean([mean[:, 0] for mean in means], axis=0))
    value = 100.0 * float(np.mean([values.mean() for values in strata]))
    subsets = ", ".join(str(n) for n in hits)
    return Metric(
        name=name,
        value=value,
        low=low,
        high=high,
        n=sum(len(values) for values in strata),
        chance=float(np.mean([100.0 / n for n in hits])),
        protocol=f"{protocol}; mean of the subsets with {subsets} points",
    )


def _picked(points: Sequence[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], float], letter: str) -> float:
    """How likely a short cut picks the marker with this letter."""
    highest = max(map(key, points))
    picked = [point["letter"] for point in points if key(point) == highest]
    return (letter in picked) / len(picked)


def _read_subset(folder: Path, n: int, points: Mapping[tuple[int, str], Any] | None) -> list[_Question]:
    questions_file = folder / "questions" / f"blink_{n}pointscenter_questions.jsonl"
    answers_file = folder / "answers" / f"blink_{n}pointscenter_answers.jsonl"
    rows = read_jsonl(questions_file, keys=("question_id", "image", "text"))
    truths = read_jsonl(answers_file, keys=("question_id", "text"))
    for file, entries in ((questions_file, rows), (answers_file, truths)):
        unique((said(row, "question_id", f"{file}: a row") for row in entries), what="question_id", named_in=file)
    truth_of = {row["question_id"]: str(row["text"]) for row in truths}
    if lone := {row["question_id"] for row in rows} ^ truth_of.keys():
        raise ValueError(
            f"{answers_file}: question_ids without a partner in {questions_file.name}: {sorted(lone, key=str)[:5]}"
        )
    letters = "ABCDE"[:n]
    questions = []
    for row in rows:
        key = row["question_id"]
        expected = truth_of[key].strip("() \n")
        if len(expected) != 1 or expected not in letters:
            raise ValueError(f"{answers_file}: question {key}: {truth_of[key]!r} is none of {letters}")
        image = Path(inside(str(folder / "images" / f"blink{n}pointscenter"), row["image"], named_in=questions_file))
        plain = folder / "unmarked" / image.relative_to(folder / "images")
        item = Item(
            item_id=f"{n}/{key}",
            image=image,
            unmarked=plain if plain.is_file() else None,
            question=said(row, "text", f"{questions_file}: question {key}"),
            expected=expected,
        )
        questions.append(_Question(subset=n, item=item, points=None if points is None else points.get((n, str(key)))))
    if points is not None and any(question.points is None for question in questions):
        raise ValueError(f"{folder / 'markers.jsonl'}: questions of the subset with {n} points are missing in it")
    return questions


def _read_points(folder: Path) -> dict[tuple[int, str], Any] | None:
    """Marked points by (subset, question_id); None without a markers file, as in the official release."""
    file = folder / "markers.jsonl"
    if not file.exists():
        return None
    rows = read_jsonl(file, keys=("question_id", "subset", "points"))
    if strange := [row["subset"] for row in rows if row["subset"] not in SUBSETS]:
        raise ValueError(f"{file}: subset {strange[0]!r} is none of {SUBSETS}")
    for row in rows:
        if not isinstance(row["points"], list) or not row["points"] or not all(map(_is_point, row["points"])):
            raise ValueError(f"{file}: question {row['question_id']}: points are objects with letter, y, area and brightness")
    return {(row["subset"], str(row["question_id"])): row["points"] for row in rows}


def _is_point(point: Any) -> bool:
    numbers = [point.get(key) for key in ("y", "area", "brightness")] if isinstance(point, dict) else [None]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers) and "letter" in point
