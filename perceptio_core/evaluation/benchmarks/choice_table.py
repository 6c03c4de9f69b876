"""Multiple-choice questions in VLMEvalKit's table: MMBench, SEEDBench_IMG, AI2D_TEST, ScienceQA_TEST.

A TSV with the columns index, question, A, B, answer, image and mostly hint, C, D, category, l2-category, split; fields may be
quoted and hold line breaks and quotes. ``image`` is base64, or (at most 64 characters) the index of the row that has the
picture. A results file is the same table, as TSV or XLSX, with a column ``prediction`` and mostly without ``image``.
"""

from __future__ import annotations

import base64
import binascii
import csv
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from perceptio_core.evaluation.benchmarks.benchmark import Item, unique
from perceptio_core.evaluation.benchmarks.choice_prompt import choice_prompt, table_language

COLUMNS = ("index", "question", "A", "B")
ANSWER = "answer"
POINTER_LENGTH = 64
_LONGEST_FIELD = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """One row of the table.

    Attributes:
        item: its `image` is empty where pictures are not read.
        index: the number that names the row.
        choices: text of the options by letter.
        fields: all columns as text, without the picture.
    """

    item: Item
    index: int
    choices: Mapping[str, str]
    fields: Mapping[str, str]

    def field(self, column: str) -> str:
        """A column's text, empty where there is no such column."""
        return self.fields.get(column, "")


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a TSV or XLSX as text.

    Raises:
        ValueError: absent, no such table, or a table without the column index, or with an index twice.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        if file.suffix == ".xlsx":
            # Text as it stands: by default pandas would make a missing value of the options "None" and "NA".
            table = pd.read_excel(file, dtype=str, keep_default_na=False, engine="openpyxl")
            columns = list(table.columns)
            records = [dict(zip(columns, values, strict=True)) for values in table.to_numpy().tolist()]
        else:
            columns, records = _of_tsv(file)
    except Exception as error:  # openpyxl meets broken archives with errors of many kinds
        raise ValueError(f"{file}: cannot be read as a table: {type(error).__name__}: {error}") from error
    if "index" not in columns:
        raise ValueError(f"{file}: there is no column index; there are {columns}")
    # A spreadsheet may hold the index as 12.0.
    records = [{**record, "index": str(record["index"]).removesuffix(".0")} for record in records]
    unique((record["index"] for record in records), what="index", named_in=file)
    return records


def _of_tsv(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows. pandas would take a row that is too short or too long for a whole one."""
    csv.field_size_limit(_LONGEST_FIELD)
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        records = []
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                raise ValueError(f"row {number} (index {row.get('index')!r:.80}) has more or fewer columns than the header")
            records.append(row)
        return list(reader.fieldnames or ()), records


def read_choice_rows(file: Path, *, pictures: bool = True, answers: bool = True) -> list[ChoiceRow]:
    """The questions of a table.

    Args:
        file: TSV or XLSX.
        pictures: whether the pictures are read; to score answers none is needed.
        answers: whether there must be a column with the right answers; without it `Item.expected` is empty.

    Raises:
        ValueError: a column or picture is missing, an index is no number or occurs twice, an answer is no option.
    """
    records = read_table(file)
    columns = [*COLUMNS, *([ANSWER] if answers else []), *(["image"] if pictures else [])]
    if missing := [column for column in columns if records and column not in records[0]]:
        raise ValueError(f"{file}: columns {missing} are missing; there are {list(records[0])}")
    images = {record["index"]: record.get("image", "") for record in records}
    language = table_language(file, (record["question"] for record in records))
    return [_row(record, images if pictures else None, file, language) for record in records]


def _row(record: Mapping[str, str], images: Mapping[str, str] | None, file: Path, language: str) -> ChoiceRow:
    index = record["index"]
    if not index.isdecimal():
        raise ValueError(f"{file}: index {index!r} is not a number")
    choices = {letter: record[letter] for letter in string.ascii_uppercase if record.get(letter, "") != ""}
    expected = record.get(ANSWER, "")
    if ANSWER in record and expected not in choices:
        raise ValueError(f"{file}: index {index}: answer {expected!r} is none of the options {list(choices)}")
    item = Item(
        item_id=index,
        image=b"" if images is None else _image(index, images, file),
        question=choice_prompt(record["question"], choices, hint=record.get("hint", ""), language=language),
        expected=expected,
    )
    fields = {column: value for column, value in record.items() if column != "image"}
    return ChoiceRow(item=item, index=int(index), choices=choices, fields=fields)


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
