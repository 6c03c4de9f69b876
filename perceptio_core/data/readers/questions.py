"""Any folder of images with a table of questions: CSV, TSV, JSONL or parquet with the columns image, question and answer.

Read row by row. Further columns are left alone, so that a table may say more about its rows; but in a column mask stands the
picture of a mask, and the row's question then asks for it. `perceptio_core.data.readers.question_columns` has the other
names that a column may have.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceptio_core.data.readers.mask_pictures import read_mask
from perceptio_core.data.readers.question_columns import columns_of, missing_of
from perceptio_core.data.records import SEGMENT_ANSWER, Record, Refused, Split, inside, segment_question
from perceptio_core.jsonl import objects

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_LONGEST_FIELD = 1 << 30
_DELIMITERS = ",;\t"
_SENTENCE_END = (".", "?", "!", "。", "？", "！")
_ASKS_FOR_MASKS = ("segment", "mask")


def question_records(
    path: Path, *, source: str, split: Split, root: Path, images: str | None, masks: str | None = None
) -> Iterator[Record | Refused]:
    """A record per row: a conversation, or a referring one where the row has a mask.

    Image paths are relative to `images` below `root`, by default to the table's folder; absolute ones must lie there. Of a row
    with a mask, `mask_question` makes the question, and the answer may be empty. Rows with another empty or missing value, or
    that cannot be read, are refused, each with its number and the reason.

    Args:
        path: the table.
        source: name of the data set.
        split: of its records.
        root: the data root.
        images: folder of the pictures below `root`.
        masks: folder below `root` that the paths of the masks are relative to; None: the table's.

    Raises:
        ValueError: the file is absent, none of the four kinds, malformed as a whole, lacks a column, or has the pictures
            themselves in the column image, as tables on the hub have.
    """
    beside = path.parent.relative_to(root).as_posix()
    image_folder, mask_folder = (beside if folder is None else folder for folder in (images, masks))
    for number, row in enumerate(table_rows(path)):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            question = _text(row, "question")
            name = _below(row.get("image"), root / image_folder)
            image = inside(image_folder, name, named_in=path)
            mask = None if _is_empty(row.get("mask")) else _mask(row["mask"], root, mask_folder, named_in=path)
            answer = _text(row, "answer") if mask is None or not _is_empty(row.get("answer")) else SEGMENT_ANSWER
        except ValueError as error:
            yield Refused(file=f"{path.relative_to(root)}#{number}", reason=str(error))
            continue
        yield Record(
            record_id=f"{source}/{number}",
            image=image,
            image_name=PurePosixPath(name).with_suffix("").as_posix(),
            split=split,
            task="conversation" if mask is None else "referring",
            turns=((question if mask is None else mask_question(question), answer),),
            expression=None if mask is None else question,
            masks=None if mask is None else (mask,),
            source=source,
        )


def mask_question(text: str) -> str:
    """What a row with a mask asks: a request or a sentence as it stands; any other words name a thing, which is asked for."""
    is_request = text.endswith(_SENTENCE_END) or any(word in text.casefold() for word in _ASKS_FOR_MASKS)
    return text if is_request else segment_question(text)


def _mask(value: Any, root: Path, folder: str, *, named_in: Path) -> dict[str, Any]:
    name = inside(folder, _below(value, root / folder), named_in=named_in)
    try:
        return read_mask(root / name)
    except ValueError as error:
        raise ValueError(f"mask {value}: {error}") from error


def _below(value: Any, folder: Path) -> Any:
    """A path as a table has it, made relative where it is an absolute one into the folder."""
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(folder):
        return Path(value).relative_to(folder).as_posix()
    return value


def _is_empty(value: Any) -> bool:
    """Whether a field says nothing: none, blank, or pandas' not-a-number."""
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value))


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} must be a text that is not empty, got {value!r:.80}")
    return value.strip()


def table_rows(path: Path) -> Iterator[dict[str, Any] | str]:
    """The rows of a table by `question_columns.NAMES`; of one that cannot be read, what is wrong with it."""
    read: dict[str, Callable[[Path], Iterator[dict[str, Any] | str]]] = {
        ".csv": _of_csv,
        ".tsv": _of_csv,
        ".jsonl": _of_jsonl,
        ".parquet": _of_parquet,
    }
    suffix = path.suffix.lower()
    if suffix not in read:
        raise ValueError(f"{path}: allowed are tables of questions as {', '.join(SUFFIXES)}")
    try:
        yield from read[suffix](path)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error


def _of_csv(path: Path) -> Iterator[dict[str, Any] | str]:
    with path.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets put a mark before the first column's name
        reader = _csv_reader(stream)
        columns = _checked_columns(path, reader.fieldnames or ())
        for row in reader:
            yield {column: row[name] for column, name in columns.items()}


def _csv_reader(stream: IO[str]) -> csv.DictReader[str]:
    csv.field_size_limit(_LONGEST_FIELD)
    head = stream.readline()
    stream.seek(0)
    # Spreadsheets write semicolons where the comma is the decimal mark.
    return csv.DictReader(stream, strict=True, delimiter=max(_DELIMITERS, key=head.count))


def _of_jsonl(path: Path) -> Iterator[dict[str, Any] | str]:
    with path.open(encoding="utf-8-sig") as stream:
        for _, row in objects(stream):
            if isinstance(row, str):
                yield row
                continue
            try:
                yield {column: row[name] for column, name in columns_of(row).items()}
            except ValueError as error:
                yield str(error)


def _of_parquet(path: Path) -> Iterator[dict[str, Any] | str]:
    file = pq.ParquetFile(path)
    columns = _checked_columns(path, file.schema_arrow.names)
    kind = file.schema_arrow.field(columns["image"]).type
    if pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(
            f"{path}: its column {columns['image']} holds the pictures themselves; allowed are names of files: write each "
            "picture to a file below the table's folder, and its name into the column"
        )
    for batch in file.iter_batches(columns=list(columns.values())):
        for row in batch.to_pylist():
            yield {column: row[name] for column, name in columns.items()}


def _checked_columns(path: Path, names: Any) -> dict[str, str]:
    try:
        columns = columns_of(names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if missing := missing_of(columns):
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}; it has {', '.join(map(str, names)) or 'none'}")
    return columns


def table_columns(path: Path) -> dict[str, str]:
    """The columns of a table, each with its name there; of a .jsonl, those of its first line.

    Raises:
        ValueError: as `question_records`; or the first line of a .jsonl is no object with the columns.
    """
    if path.suffix.lower() == ".jsonl":
        try:
            with path.open(encoding="utf-8-sig") as stream:
                row = json.loads(stream.readline())
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: a .jsonl has an object a line, each a row of the table: {error}") from error
        return _checked_columns(path, row if isinstance(row, dict) else ())
    next(table_rows(path), None)  # raises where it is no table
    if path.suffix.lower() == ".parquet":
        return columns_of(pq.read_schema(path).names)
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return columns_of(_csv_reader(stream).fieldnames or ())
