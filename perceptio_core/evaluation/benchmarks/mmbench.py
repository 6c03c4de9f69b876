"""MMBench, circular evaluation (arXiv 2307.06281), legacy and V11 files.

Official file: a table as in `perceptio_core.evaluation.benchmarks.choice_table`. The rotations of a question's options are rows
of their own, with the same ``index % 1e6``; a question counts only if the answers to *all* its rotations are right. The test
sets come without the column answer: they can be asked, and the answers exported for MMBench's server, but not scored.

Overall is the mean over questions, per split; then by l2-category and category. No judge model, no random guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from perceptio_core.data.records import spread
from perceptio_core.evaluation.answers.harness_readings import OPTION_READINGS
from perceptio_core.evaluation.answers.options import RULE, parse_option
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, accuracy, grouped
from perceptio_core.evaluation.benchmarks.choice import longest_option
from perceptio_core.evaluation.benchmarks.choice_table import ChoiceRow, read_choice_rows
from perceptio_core.evaluation.benchmarks.official_files import described
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

ROTATION = 1_000_000


class MMBench:
    """One MMBench table.

    Args:
        file: the TSV; or, without pictures, a results file, TSV or XLSX.
        split: keep the rows with this split only; None keeps all.
        limit: at most this many questions, each with all its rotations.
        pictures: whether the pictures are read; to score answers none is needed.

    Raises:
        ValueError: a column or picture is missing, an index occurs twice, an answer is no option, nothing is left.
    """

    def __init__(self, file: Path, *, split: str | None = None, limit: int | None = None, pictures: bool = True) -> None:
        table = read_choice_rows(file, pictures=pictures, answers=False)
        rows = [row for row in table if split is None or row.field("split") == split]
        if not rows:
            raise ValueError(f"{file}: no rows" + ("" if split is None else f" with split {split!r}"))
        questions = grouped(rows, lambda row: row.index % ROTATION)
        self._questions: list[list[ChoiceRow]] = [questions[key] for key in spread(list(questions), limit)]
        self._label = described(file) + (f", split {split}" if split else "")

    @property
    def items(self) -> list[Item]:
        """The rows, a question's rotations together."""
        return [row.item for row in self.rows]

    @property
    def rows(self) -> list[ChoiceRow]:
        """The same with the columns of the table."""
        return [row for question in self._questions for row in question]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """mmbench; as parts mmbench/<reading>, the same answers as others read them, and splits and categories.

        Baseline: mmbench_longest, which looks at no picture. No letter is right in all rotations, so there is no majority.
        Without right answers there is no metric.
        """
        parsed = {
            row.item.item_id: parse_option(answers[row.item.item_id].text, letters="".join(row.choices), choices=row.choices)
            for question in self._questions
            for row in question
        }
        unparsed = sum(letter is None for letter in parsed.values())
        if not self.rows[0].item.expected:
            nothing = dict.fromkeys(parsed)
            return Scores(headline=[], main="mmbench", correct=nothing, unparsed=unparsed, parsable=len(parsed))
        correct = {
            row.item.item_id: float(parsed[row.item.item_id] == row.item.expected)
            for question in self._questions
            for row in question
        }
        hits = [all(correct[row.item.item_id] for row in question) for question in self._questions]
        rule = (
            f"MMBench circular, {self._label}: all rotations of a question right, {len(parsed)} rows; {RULE}, "
            f"{unparsed} unparsed count as wrong"
        )
        unit = "per question"
        # Chance is to guess every rotation right.
        guessed = [100.0 * math.prod(1 / len(row.choices) for row in question) for question in self._questions]
        chance = float(np.mean(guessed))
        headline = [accuracy(hits, name="mmbench", protocol=rule, bootstrap=bootstrap, unit=unit, chance=chance)]
        longest = [all(longest_option(row.choices) == row.item.expected for row in question) for question in self._questions]
        always = f"MMBench circular, {self._label}, {len(parsed)} rows: always the longest option, of several the first"
        breakdown = [
            accuracy(
                [
                    all(reading.read(answers[row.item.item_id].text, row.choices) == row.item.expected for row in question)
                    for question in self._questions
                ],
                name=f"mmbench/{named}",
                protocol=(
                    f"MMBench circular, {self._label}, {len(parsed)} rows; option by the exact matching of {reading.source}"
                ),
                bootstrap=bootstrap,
                unit=unit,
                chance=chance,
            )
            for named, reading in OPTION_READINGS.items()
        ]
        for part in ("split", "l2-category", "category"):
            pairs = [(question[0].field(part), index) for index, question in enumerate(self._questions)]
            for label, members in sorted(grouped(pairs, lambda pair: pair[0]).items()):
                if label:
                    breakdown.append(
                        accuracy(
                            [hits[index] for _, index in members],
                            name=f"mmbench/{part.replace('-', '_')}/{label}",
                            protocol=rule,
                            bootstrap=bootstrap,
                            unit=unit,
                            chance=float(np.mean([guessed[index] for _, index in members])),
                        )
                    )
        return Scores(
            headline=headline,
            main="mmbench",
            baselines=[accuracy(longest, name="mmbench_longest", protocol=always, bootstrap=bootstrap, unit=unit)],
            breakdown=breakdown,
            correct=correct,
            unparsed=unparsed,
            parsable=len(parsed),
        )
