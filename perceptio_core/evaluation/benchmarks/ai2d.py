"""AI2D test, questions about diagrams (arXiv 1603.07396): multiple choice, plain accuracy.

Read from VLMEvalKit's ``AI2D_TEST.tsv`` (labels in the diagrams covered by boxes with letters) or ``AI2D_TEST_NO_MASK.tsv``:
these are what published figures are measured on; the score names the one it was read from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perceptio_core.data.records import spread
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores
from perceptio_core.evaluation.benchmarks.choice import ChoiceQuestion, score_choices
from perceptio_core.evaluation.benchmarks.choice_table import read_choice_rows
from perceptio_core.evaluation.benchmarks.official_files import described
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap


class AI2D:
    """One AI2D table.

    Args:
        file: the TSV.
        limit: at most this many questions.
        pictures: whether the pictures are read; to score answers none is needed.

    Raises:
        ValueError: as `read_choice_rows`.
    """

    def __init__(self, file: Path, *, limit: int | None = None, pictures: bool = True) -> None:
        self.rows = spread(read_choice_rows(file, pictures=pictures), limit)
        """The questions with the columns of the table."""
        if not self.rows:
            raise ValueError(f"{file}: no rows")
        self._questions = [ChoiceQuestion(item=row.item, choices=row.choices) for row in self.rows]
        self._label = f"AI2D ({described(file)})"

    @property
    def items(self) -> list[Item]:
        """The questions in the order of the file."""
        return [question.item for question in self._questions]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """The metric ai2d."""
        return score_choices(self._questions, answers, name="ai2d", label=self._label, bootstrap=bootstrap)
