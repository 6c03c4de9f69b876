"""The manifest of all sources: ``images.parquet``, ``records.parquet`` and ``quarantine.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceptio_core.data.records import Record, Refused, Split
from perceptio_core.params.sources import SourcesParams

_IMAGES = pa.schema(
    [
        ("image_key", pa.string()),
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("split", pa.string()),
    ]
)
_RECORDS = pa.schema(
    [
        ("record_id", pa.string()),
        ("image_key", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("turns", pa.string()),
        ("expression", pa.string()),
        ("masks", pa.string()),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image: unique key, path below the data root, size of the upright picture, sha256 of the file."""

    image_key: str
    path: str
    width: int
    height: int
    sha256: str
    split: Split


@dataclass(frozen=True, kw_only=True)
class RecordRow:
    """One record of the manifest; `Record` says what the fields hold."""

    record_id: str
    image_key: str
    split: Split
    task: str
    turns: tuple[tuple[str, str], ...]
    expression: str | None
    masks: tuple[dict[str, Any], ...] | None
    source: str

    @classmethod
    def of(cls, record: Record, *, image_key: str) -> RecordRow:
        """The record's row, now that its image has a key."""
        return cls(
            record_id=record.record_id,
            image_key=image_key,
            split=record.split,
            task=record.task,
            turns=record.turns,
            expression=record.expression,
            masks=record.masks,
            source=record.source,
        )


def data_root(params: SourcesParams, out: Path) -> Path:
    """The folder that image paths and benchmark paths are relative to: the rendered world in `out`, or the user's.

    Args:
        params: the `sources` section.
        out: the finished output of the stage `sources`.

    Raises:
        ValueError: the user's folder is absent, or an environment variable in its name is not set.
    """
    return out / "root" if params.render is not None else params.expanded_root()


def write_manifest(
    folder: Path, *, images: Sequence[ImageRow], records: Sequence[RecordRow], quarantine: Iterable[Refused]
) -> None:
    """Write the three files; the same rows give the same bytes.

    Raises:
        ValueError: an image key or record id occurs twice.
    """
    for name, keys in (("image_key", [i.image_key for i in images]), ("record_id", [r.record_id for r in records])):
        if len(set(keys)) < len(keys):
            twice = next(key for number, key in enumerate(keys) if key in keys[:number])
            raise ValueError(f"{folder}: {name} {twice!r} occurs twice")
    pq.write_table(pa.Table.from_pylist([asdict(image) for image in images], schema=_IMAGES), folder / "images.parquet")
    columns = {name: [getattr(record, name) for record in records] for name in _RECORDS.names}
    columns["turns"] = [_json(turns) for turns in columns["turns"]]
    columns["masks"] = [None if masks is None else _json(masks) for masks in columns["masks"]]
    pq.write_table(pa.table(columns, schema=_RECORDS), folder / "records.parquet", compression="zstd")
    write_quarantine(folder / "quarantine.jsonl", quarantine)


def write_quarantine(path: Path, rows: Iterable[Refused]) -> None:
    """One line {file, reason} per refused thing."""
    path.write_text("".join(f"{_json(asdict(row))}\n" for row in rows), encoding="utf-8")


def read_quarantine(path: Path) -> dict[str, str]:
    """Reason by file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["file"]: row["reason"] for row in map(json.loads, lines)}


def read_images(folder: Path) -> list[ImageRow]:
    """The rows of ``images.parquet``, in order.

    Raises:
        ValueError: absent, or of another schema.
    """
    return [ImageRow(**row) for row in _read(folder / "images.parquet", _IMAGES)]


def read_records(folder: Path) -> list[RecordRow]:
    """The rows of ``records.parquet``, in order.

    Raises:
        ValueError: absent, or of another schema.
    """
    rows = []
    for row in _read(folder / "records.parquet", _RECORDS):
        turns = tuple((question, answer) for question, answer in json.loads(row.pop("turns")))
        masks = row.pop("masks")
        rows.append(RecordRow(**row, turns=turns, masks=None if masks is None else tuple(json.loads(masks))))
    return rows


def _read(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error
    if table.schema.names != schema.names:
        raise ValueError(f"{path}: columns are {table.schema.names}, expected {schema.names}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
