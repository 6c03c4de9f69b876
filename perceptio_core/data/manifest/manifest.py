"""The manifest of all sources: ``images.parquet``, ``records.parquet`` and ``quarantine.jsonl``.

It may be longer than memory: it is written from iterators and read row by row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from perceptio_core.data.records import Point, Record, Refused, Split
from perceptio_core.jsonl import stream_jsonl
from perceptio_core.params.sources import SourcesParams
from perceptio_core.parquet import ascending, find_twice, read_range, read_rows, write_rows

IMAGES, RECORDS, QUARANTINE, DATA = "images.parquet", "records.parquet", "quarantine.jsonl", "data.json"
IMAGES_SCHEMA = pa.schema(
    [
        ("image_key", pa.string()),
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("split", pa.string()),
    ]
)
RECORDS_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("image", pa.string()),
        ("image_name", pa.string()),
        ("image_key", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("turns", pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))),
        ("expression", pa.string()),
        ("masks", pa.list_(pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())]))),
        ("points", pa.list_(pa.struct([("letter", pa.string()), ("x", pa.int32()), ("y", pa.int32())]))),
        ("source", pa.string()),
    ]
)
"""Of `Record`, in the manifest and wherever else records wait on disk."""


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image: unique key, path below the data root, size of the upright picture, sha256 of the file."""

    image_key: str
    path: str
    width: int
    height: int
    sha256: str
    split: Split


def data_root(params: SourcesParams, out: Path) -> Path:
    """The folder that image paths and benchmark paths are relative to: the rendered world in `out`, or the user's.

    Args:
        params: the `sources` section.
        out: the finished output of the stage `sources`.

    Raises:
        ValueError: the user's folder is absent, or an environment variable in its name is not set.
    """
    return out / "root" if params.render is not None else params.expanded_root()


def write_images(folder: Path, images: Iterable[ImageRow]) -> None:
    """Write ``images.parquet``; the same rows give the same bytes.

    Raises:
        ValueError: an image key does not follow the one before it.
    """
    write_rows(folder / IMAGES, IMAGES_SCHEMA, map(asdict, ascending(images, named=folder / IMAGES)))


def write_records(path: Path, records: Iterable[Record], *, named: Path) -> int:
    """Write a table of records; returns their number.

    Args:
        path: the file.
        records: in any order.
        named: what to call them in a message.

    Raises:
        ValueError: two records have the same id.
    """
    count = write_rows(path, RECORDS_SCHEMA, map(vars, records), compression="zstd")
    if (twice := find_twice(path, RECORDS_SCHEMA, "record_id")) is not None:
        raise ValueError(f"{named}: two records have the id {twice}; it must stand for one")
    return count


def write_quarantine(stream: IO[str], rows: Iterable[Refused]) -> int:
    """Write one line {file, reason} per refused thing; returns their number."""
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007 (the last one is their number)
        stream.write(json.dumps(asdict(row), ensure_ascii=False, separators=(",", ":")) + "\n")
    return count


def read_quarantine(path: Path) -> Iterator[Refused]:
    """The rows, one after the other."""
    for row in stream_jsonl(path, keys=("file", "reason")):
        yield Refused(**row)


def read_images(folder: Path) -> Iterator[ImageRow]:
    """The rows of ``images.parquet``, ascending by image key.

    Raises:
        ValueError: absent, of another schema, or in another order.
    """
    rows = (ImageRow(**row) for row in read_rows(folder / IMAGES, IMAGES_SCHEMA))
    return ascending(rows, named=folder / IMAGES)


def read_image_range(folder: Path, *, start: int, stop: int) -> list[ImageRow]:
    """The rows from `start` to before `stop`; raises what `read_images` does."""
    rows = [ImageRow(**row) for row in read_range(folder / IMAGES, IMAGES_SCHEMA, start=start, stop=stop)]
    return list(ascending(rows, named=folder / IMAGES))


def read_records(path: Path) -> Iterator[Record]:
    """The records of a table, in order.

    Raises:
        ValueError: absent, or of another schema.
    """
    return map(record_of, read_rows(path, RECORDS_SCHEMA))


def record_of(row: Mapping[str, Any]) -> Record:
    """The record of a row of `RECORDS_SCHEMA` as plain values."""
    turns = tuple((turn["question"], turn["answer"]) for turn in row["turns"])
    masks = None if row["masks"] is None else tuple(row["masks"])
    return Record(**{**row, "turns": turns, "masks": masks, "points": tuple(Point(**point) for point in row["points"])})
