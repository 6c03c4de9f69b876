"""BLINK's task Relative_Depth: which of two points is closer to the camera (arXiv 2404.12390); AURORA's "2 points".

Official file: the parquet of the split val, ``Relative_Depth/val-*.parquet``, with the columns idx, sub_task, image_1
(encoded picture), choices, answer "(A)" and prompt. 124 questions; the split test has no public answers.

Score: accuracy, as ``eval/evaluate.py`` of zeyofu/BLINK_Benchmark computes it for one task; there a language model reads the
option out of an answer, here rules do.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from perceptio_core.data.records import spread
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, said, unique
from perceptio_core.evaluation.benchmarks.choice import ChoiceQuestion, score_choices
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

COLUMNS = ("idx", "sub_task", "image_1", "choices", "answer", "prompt")
TASK = "Relative_Depth"


class BlinkDepth:
    """The questions of one parquet file.

    Args:
        path: the file, or the folder that holds it as ``val-*.parquet``.
        limit: at most this many questions.

    Raises:
        ValueError: absent, malformed, another task's, or without answers.
    """

    def __init__(self, path: Path, *, limit: int | None = None) -> None:
        file = _file(path)
        try:
            table = pq.read_table(file)
        except Exception as error:  # pyarrow has a family of errors of its own
            raise ValueError(f"{file}: cannot be read as parquet: {error}") from error
        if missing := [column for column in COLUMNS if column not in table.column_names]:
            raise ValueError(f"{file}: columns {missing} are missing; there are {table.column_names}")
        rows = table.select(list(COLUMNS)).to_pylist()
        unique((said(row, "idx", f"{file}: row {number}") for number, row in enumerate(rows)), what="idx", named_in=file)
        self.questions = spread([_question(row, file) for row in rows], limit)
        """The questions with their options, in the order of the file."""
        if not self.questions:
            raise ValueError(f"{file}: no rows")

    @property
    def items(self) -> list[Item]:
        """The questions in the order of the file."""
        return [question.item for question in self.questions]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """The metric blink_depth."""
        label = "BLINK, Relative_Depth, split val (2 points)"
        return score_choices(self.questions, answers, name="blink_depth", label=label, bootstrap=bootstrap)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("val-*.parquet"))
    if len(found) != 1:
        raise ValueError(f"{path}: expected one val-*.parquet in it, found {[file.name for file in found]}")
    return found[0]


def _question(row: Mapping[str, Any], file: Path) -> ChoiceQuestion:
    where = f"{file}: {row['idx']}"
    if row["sub_task"] != TASK:
        raise ValueError(f"{where}: sub_task {row['sub_task']!r}; allowed is {TASK}")
    listed = {f"choice {number}": choice for number, choice in enumerate(row["choices"] or [])}
    choices = dict(zip(string.ascii_uppercase, (said(listed, key, where) for key in listed), strict=False))
    expected = str(row["answer"]).strip("() ")
    if expected not in choices:
        raise ValueError(f"{where}: answer {row['answer']!r} is none of the options {list(choices)} (only val has answers)")
    picture = row["image_1"].get("bytes") if isinstance(row["image_1"], dict) else None
    if not isinstance(picture, bytes) or not picture:
        raise ValueError(f"{where}: image_1 holds no picture")
    item = Item(item_id=str(row["idx"]), image=picture, question=said(row, "prompt", where), expected=expected)
    return ChoiceQuestion(item=item, choices=choices)
