"""MMBench, circular evaluation (arXiv 2307.06281).

Official file: a TSV with the columns index, question, hint, A, B, C, D, answer, category, image, source, l2-category,
comment, split. Fields may be quoted and hold line breaks and quotes. ``image`` is base64, or (at most 64 characters) the
index of the row that has the picture. The rotations of a question's options are rows of their own, with the same
``index % 1e6``; a question counts only if the answers to *all* its rotations are right.

Overall is the mean over questions, per split; then by l2-category and category. No judge model, no random guess.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from perceptio_core.data.records import spread
from perceptio_core.evaluation.answers import choice_prompt, parse_option
from perceptio_core.evaluation.benchmark import Answer, Item, Scores, accuracy, grouped, unique
from perceptio_core.evaluation.bootstrap import Bootstrap

LETTERS = "ABCD"
COLUMNS = ("index", "question", *LETTERS[:2], "answer", "image")
ROTATION = 1_000_000
POINTER_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class _Row:
    item: Item
    index: int
    choices: Mapping[str, str]
    split: str
    l2_category: str
    category: str


class MMBench:
    """One MMBench TSV.

    Args:
        file: the TSV.
        split: keep the rows with this split only; None keeps all.
        limit: at most this many questions, each with all its rotations.

    Raises:
        ValueError: a column or picture is missing, an index occurs twice, an answer is no option, nothing is left.
    """

    def __init__(self, file: Path, *, split: str | None = None, limit: int | None = None) -> None:
        rows = [row for row in _read(file) if split is None or row.split == split]
        if not rows:
            raise ValueError(f"{file}: no rows" + ("" if split is None else f" with split {split!r}"))
        questions = grouped(rows, lambda row: row.index % ROTATION)
        self._questions: list[list[_Row]] = [questions[key] for key in spread(list(questions), limit)]

    @property
    def items(self) -> list[Item]:
        """The rows, a question's rotations together."""
        return [row.item for question in self._questions for row in question]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """mmbench, and its parts by split, l2-category and category."""
        parsed = {
            row.item.item_id: parse_option(answers[row.item.item_id].text, letters="".join(row.choices), choices=row.choices)
            for question in self._questions
            for row in question
        }
        correct = {
            row.item.item_id: float(parsed[row.item.item_id] == row.item.expected)
            for question in self._questions
            for row in question
        }
        hits = [all(correct[row.item.item_id] for row in question) for question in self._questions]
        rule = (
            f"MMBench circular: all rotations of a question right, {len(parsed)} rows; letter read by rules, "
            "unparsable counts as wrong"
        )
        unit = "per question"
        headline = [accuracy(hits, name="mmbench", protocol=rule, bootstrap=bootstrap, unit=unit)]
        breakdown = []
        for part in ("split", "l2_category", "category"):
            pairs = [(getattr(question[0], part), hit) for question, hit in zip(self._questions, hits, strict=True)]
            for label, members in sorted(grouped(pairs, lambda pair: pair[0]).items()):
                if label:
                    part_hits = [hit for _, hit in members]
                    name = f"mmbench/{part}/{label}"
                    breakdown.append(accuracy(part_hits, name=name, protocol=rule, bootstrap=bootstrap, unit=unit))
        return Scores(
            headline=headline,
            main="mmbench",
            breakdown=breakdown,
            correct=correct,
            unparsed=sum(letter is None for letter in parsed.values()),
            parsable=len(parsed),
        )


def _read(file: Path) -> list[_Row]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    # Text as it stands: by default pandas would make a missing value of the options "None" and "NA".
    table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8")
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise ValueError(f"{file}: columns {missing} are missing; there are {list(table.columns)}")
    records = [dict(zip(table.columns, values, strict=True)) for values in table.to_numpy().tolist()]
    unique((record["index"] for record in records), what="index", named_in=file)
    images = {record["index"]: record["image"] for record in records}
    return [_row(record, images, file) for record in records]


def _row(record: Mapping[str, str], images: Mapping[str, str], file: Path) -> _Row:
    index = record["index"]
    if not index.isdecimal():
        raise ValueError(f"{file}: index {index!r} is not a number")
    choices = {letter: record[letter] for letter in LETTERS if record.get(letter, "") != ""}
    if record["answer"] not in choices:
        raise ValueError(f"{file}: index {index}: answer {record['answer']!r} is none of the options {list(choices)}")
    item = Item(
        item_id=index,
        image=_image(index, images, file),
        question=choice_prompt(record["question"], choices, hint=record.get("hint", "")),
        expected=record["answer"],
    )
    return _Row(
        item=item,
        index=int(index),
        choices=choices,
        split=record.get("split", ""),
        l2_category=record.get("l2-category", ""),
        category=record.get("category", ""),
    )


def _image(index: str, images: Mapping[str, str], file: Path) -> bytes:
    """The picture of a row; a short field points at the row that has it."""
    encoded = images[index]
    if len(encoded) <= POINTER_LENGTH:
        if len(images.get(encoded, "")) <= POINTER_LENGTH:
            raise ValueError(f"{file}: index {index}: image {encoded!r} points at no row with a picture")
        encoded = images[encoded]
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{file}: index {index}: image is not base64 ({error})") from error
