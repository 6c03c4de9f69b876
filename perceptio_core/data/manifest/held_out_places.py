"""The pictures in the places that `sources.held_out` names: folders, tables with pictures in them, REFER's references.

A picture is told by its content, whatever its name: those of SEED-Bench have no suffix. What lies in a place and is neither
picture nor table is said, for there may be test pictures in it.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceptio_core.data.images import is_picture
from perceptio_core.data.readers.instances import read_instance_images, whole_number
from perceptio_core.data.readers.refer import read_plain_pickle
from perceptio_core.files import files_below

_POINTER = 64  # a text in a table's column of images that is not longer names another row, as in MMBench
_LONGEST_FIELD = 1 << 30
ALLOWED = "allowed are folders, pictures, .tsv, .parquet and REFER's refs(*).p"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A picture of a place.

    Attributes:
        name: what errors call it.
        file_name: of its own file, as far as that is known; COCO's tell its id.
        picture: a file, its encoded bytes, or why there is none.
    """

    name: str
    file_name: str
    picture: Path | bytes | str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file with test pictures.

    Attributes:
        file: it.
        name: what errors call it: the place, and its path there.
        tables: gives the pictures in it; None where it is a picture itself.
    """

    file: Path
    name: str
    read: Callable[[Part], Iterator[Found]] | None


@dataclass(frozen=True, kw_only=True)
class Stranger:
    """A file in a place that is neither a picture nor a table with pictures."""

    file: Path
    name: str


def parts_of(place: str, *, root: Path) -> Iterator[Part | Stranger]:
    """The files of a place below `root`, in order. References name pictures and hold none: `references` reads them.

    Raises:
        ValueError: the place is absent, or no file with pictures; names it.
    """
    path = root / place
    if path.is_dir():
        for file in files_below(path):
            name = f"{place}: {file.relative_to(path).as_posix()}"
            part = _part(file, name)
            yield part or Stranger(file=file, name=name)
    elif not path.is_file():
        raise ValueError(f"sources.held_out: {path} is absent")
    elif (part := _part(path, place)) is not None:
        yield part
    else:
        raise ValueError(f"sources.held_out: {path}: {ALLOWED}")


def _part(file: Path, name: str) -> Part | None:
    if is_picture(file):
        return Part(file=file, name=name, read=None)
    if file.suffix == ".parquet" and file.is_file():
        return Part(file=file, name=name, read=_of_parquet)
    if file.suffix == ".tsv" and file.is_file() and "image" in _header(file):
        return Part(file=file, name=name, read=_of_tsv)
    return None


def _header(file: Path) -> list[str]:
    """The columns of a .tsv."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return stream.readline().rstrip("\r\n").replace('"', "").split("\t")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"sources.held_out: {file}: {error}") from error


def _of_tsv(part: Part) -> Iterator[Found]:
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with part.file.open(newline="", encoding="utf-8-sig") as stream:
            for number, row in enumerate(csv.DictReader(stream, delimiter="\t")):
                text = row.get("image")
                if text is None or len(text) > _POINTER:
                    name = f"{part.name}, row {number}"
                    yield Found(name=name, file_name=row.get("image_path") or "", picture=_decoded(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"sources.held_out: {part.file}: {error}") from error


def _decoded(text: str | None) -> bytes | str:
    if text is None:
        return "the row is too short to have the column image"
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return "image is not base64"


def _of_parquet(part: Part) -> Iterator[Found]:
    """The pictures of all columns that hold some: as the hub has them, a list of such, or plain bytes."""
    try:
        file = pq.ParquetFile(part.file)
        pictures = [column.name for column in file.schema_arrow if _holds_pictures(column.type)]
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=pictures):
            for row in batch.to_pylist():
                for name, value in row.items():
                    yield from _pictures(value, f"{part.name}, row {number}, {name}")
                number += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"sources.held_out: {part.file}: {error}") from error


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_pictures(kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _pictures(value: Any, name: str) -> Iterator[Found]:
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from _pictures(one, f"{name} {number}")
    elif isinstance(value, bytes):
        yield Found(name=name, file_name="", picture=value)
    elif value is not None and (value["bytes"] or value.get("path")):
        picture = value["bytes"] or "the table has the name of its file alone"
        yield Found(name=name, file_name=value.get("path") or "", picture=picture)


def references(path: Path) -> Iterator[str]:
    """File names of the images that REFER's references of all splits but train are about.

    Raises:
        ValueError: these or the ``instances.json`` beside them are absent or malformed, or do not fit; names file and key.
    """
    refs: Any = read_plain_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path}: expected a list of references")
    images = read_instance_images(path.parent / "instances.json")
    wanted = {
        whole_number(ref, "image_id", f"{path}: reference {row}") for row, ref in enumerate(refs) if ref.get("split") != "train"
    }
    for number in sorted(wanted):
        if number not in images:
            raise ValueError(f"{path}: image_id {number} of a test reference is not in {path.parent / 'instances.json'}")
        yield images[number]["file_name"]
