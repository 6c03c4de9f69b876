"""Any folder of images with a table of questions: CSV, JSONL or parquet with the columns image, question and answer.

Read row by row. Further columns are left alone, so that a table may say more about its rows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceptio_core.data.records import Record, Refused, Split, inside

COLUMNS = ("image", "question", "answer")
SUFFIXES = (".csv", ".jsonl", ".parquet")
_LONGEST_FIELD = 1 << 30


def question_records(path: Path, *, source: str, split: Split, root: Path, images: str | None) -> Iterator[Record | Refused]:
    """One conversation record per row; image paths are relative to `images` below `root`, by default to the table's folder.

    Rows with an empty or missing value, or that cannot be read, are refused, each with its number and the reason.

    Raises:
        ValueError: the file is absent, none of the three kinds, malformed as a whole, lacks a column, or has the pictures
            themselves in the column image, as tables on the hub have.
    """
    folder = images if images is not None else path.parent.relative_to(root).as_posix()
    for number, row in enumerate(_rows(path)):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            question, answer = (_text(row, column) for column in COLUMNS[1:])
            image = inside(folder, row.get("image"), named_in=path)
        except ValueError as error:
            yield Refused(file=f"{path.relative_to(root)}#{number}", reason=str(error))
            continue
        yield Record(
            record_id=f"{source}/{number}",
            image=image,
            image_name=PurePosixPath(str(row["image"])).with_suffix("").as_posix(),
            split=split,
            task="conversation",
            turns=((question, answer),),
            source=source,
        )


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} must be a text that is not empty, got {value!r:.80}")
    return value.strip()


def _rows(path: Path) -> Iterator[dict[str, Any] | str]:
    """The rows of a table; of one that cannot be read, what is wrong with it."""
    read = {".csv": _of_csv, ".jsonl": _of_jsonl, ".parquet": _of_parquet}.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path}: allowed are tables of questions as {', '.join(SUFFIXES)}")
    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error


def _of_csv(path: Path) -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets put a mark before the first column's name
        reader = csv.DictReader(stream, strict=True)
        _has_columns(path, reader.fieldnames or ())
        yield from reader


def _of_jsonl(path: Path) -> Iterator[dict[str, Any] | str]:
    with path.open(encoding="utf-8-sig") as stream:
        for line in stream:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"not JSON: {error}"
                continue
            yield row if isinstance(row, dict) else "the line is not an object"


def _of_parquet(path: Path) -> Iterator[dict[str, Any] | str]:
    file = pq.ParquetFile(path)
    _has_columns(path, file.schema_arrow.names)
    kind = file.schema_arrow.field("image").type
    if pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(
            f"{path}: its column image holds the pictures themselves; allowed are names of files: write each picture to a file "
            "below the table's folder, and its name into the column"
        )
    for batch in file.iter_batches(columns=list(COLUMNS)):
        yield from batch.to_pylist()


def _has_columns(path: Path, names: Any) -> None:
    if missing := [column for column in COLUMNS if column not in names]:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(map(str, names)) or 'none'}")
