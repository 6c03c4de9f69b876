"""A person's own pictures, table of questions and COCO file: read whole, by the code of the stage `sources`, before a run."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perceptio_core.data.images import MAX_PIXELS
from perceptio_core.data.manifest.collect import OF_ITS_IMAGE, collect
from perceptio_core.data.manifest.manifest import QUARANTINE, RECORDS, read_records
from perceptio_core.data.readers.instances import read_instance_images
from perceptio_core.data.readers.own_split import place
from perceptio_core.data.readers.questions import SUFFIXES, table_columns, table_rows
from perceptio_core.data.records import Record
from perceptio_core.engine import Local
from perceptio_core.params.sources import DatasetParams

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
LEAST_PICTURES = 8
"""Fewer do not make a training and a validation set."""
_VALIDATION, _MOST_VALIDATION = 0.2, 1000  # share of the pictures, and their most
_LOOKED_AT = 200  # paths of a table, to see what they are relative to
_WORKERS = 2
_VARYING = re.compile(r"\d+|\(.*?\)")

Kind = Literal["question", "mask", "object"]


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """What was found.

    Attributes:
        root: the deepest folder with everything in it.
        datasets: how `sources` reads it, as entries of its `datasets` without split.
        columns: of the table, each with its name there.
        records: all that can be used.
        left_out: (file and row, reason) of all that cannot.
        unused: pictures in the folder that no record is about.
        copies: files that are copies of others, byte by byte.
    """

    root: Path
    datasets: tuple[dict[str, Any], ...]
    columns: dict[str, str]
    records: tuple[Record, ...]
    left_out: tuple[tuple[str, str], ...]
    unused: int
    copies: int

    @property
    def pictures(self) -> list[str]:
        """Paths of the pictures of the records, below the root, in the order in which validation takes them."""
        return sorted({record.image for record in self.records}, key=place)

    def of_kind(self, kind: Kind) -> list[Record]:
        """The records of one kind."""
        return [record for record in self.records if kind_of(record, self) == kind]


def kind_of(record: Record, data: OwnData) -> Kind:
    """What a record is: a question, a row of the table with a mask, or objects of the COCO file."""
    if record.masks is None:
        return "question"
    return "object" if record.source == data.datasets[-1]["name"] and data.datasets[-1]["kind"] == "coco" else "mask"


def read_own(name: str, *, pictures: Path, questions: Path | None, coco: Path | None) -> OwnData:
    """Read every row, and decode every picture that a row names.

    Raises:
        ValueError: a path is absent or of another kind, a file cannot be read or lacks a column, or nothing in it can be used;
            names the file and what is allowed.
    """
    if not pictures.is_dir():
        raise ValueError(f"--pictures {pictures}: not a folder")
    if questions is None and coco is None:
        raise ValueError("give --questions TABLE, --coco FILE, or both: there is nothing to learn from pictures alone")
    for option, file, suffixes in (("--questions", questions, SUFFIXES), ("--coco", coco, (".json",))):
        if file is not None and file.suffix.lower() not in suffixes:
            raise ValueError(f"{option} {file}: allowed are {', '.join(suffixes)}")
        if file is not None and not file.is_file():
            raise ValueError(f"{option} {file}: no such file")
    pictures = pictures.resolve()
    questions, coco = (None if path is None else path.resolve() for path in (questions, coco))
    columns: dict[str, str] = {}
    found: list[tuple[dict[str, Any], Path, dict[str, Path]]] = []
    if questions is not None:
        columns = table_columns(questions)
        paths: dict[str, Path] = {"images": _base(_cells(questions, "image"), [pictures, questions.parent, pictures.parent])}
        if "mask" in columns:
            paths["masks"] = _base(_cells(questions, "mask"), [questions.parent, pictures, pictures.parent])
        found.append(({"name": name, "kind": "questions"}, questions, paths))
    if coco is not None:
        names = [str(row["file_name"]) for row in read_instance_images(coco).values()]
        base = _base(names, [pictures, coco.parent, pictures.parent])
        found.append(({"name": f"{name}_objects", "kind": "coco"}, coco, {"images": base}))
    places = [pictures, *(path for _, file, folders in found for path in (file.parent, *folders.values()))]
    root = Path(os.path.commonpath(places))
    datasets = tuple(
        {**entry, "path": _relative(file, root), **{key: _relative(folder, root) for key, folder in folders.items()}}
        for entry, file, folders in found
    )
    records, left_out, copies = _collected(datasets, root=root)
    used = {record.image for record in records} | {file for file, _ in left_out}
    unused = sum(_relative(file, root) not in used for file in _files(pictures))
    data = OwnData(
        root=root,
        datasets=datasets,
        columns=columns,
        records=tuple(records),
        left_out=tuple(left_out),
        unused=unused,
        copies=copies,
    )
    if len(data.pictures) < LEAST_PICTURES:
        raise ValueError(
            f"{len(data.pictures)} pictures can be used; at least {LEAST_PICTURES} are needed, to train and to test on"
            + said_left_out(data.left_out)
        )
    return data


def validation_share(data: OwnData) -> float:
    """The share below which a fifth of the pictures lie (`perceptio_core.data.readers.own_split`), rounded, if it stays that.

    More than a fifth, up to half, where else a kind of record would have none for validation.
    """
    names, count = data.pictures, len(data.pictures)
    kinds: dict[Kind, set[str]] = {
        kind: {record.image for record in data.of_kind(kind)} for kind in ("question", "mask", "object")
    }
    first = min(max(2, round(_VALIDATION * count)), _MOST_VALIDATION)
    taken = next(
        (number for number in range(first, count // 2 + 1) if all(not of or of & set(names[:number]) for of in kinds.values())),
        first,
    )
    low, high = place(names[taken - 1]), place(names[taken])
    return next(share for digits in range(2, 18) if low < (share := round((low + high) / 2, digits)) <= high)


def said_left_out(left_out: Sequence[tuple[str, str]], *, shown: int = 8) -> str:
    """Lines that count what is left out by reason, each with an example; empty for nothing.

    Reasons that differ in a number or in what stands in brackets are one.
    """
    own = [(file, reason) for file, reason in left_out if reason != OF_ITS_IMAGE]
    kinds = [_VARYING.sub("", reason) for _, reason in own]
    first = dict(zip(reversed(kinds), reversed(own), strict=True))
    most = Counter(kinds).most_common(shown)
    lines = [f"\n  {count} x {first[kind][1]} (such as {_row(first[kind][0])})" for kind, count in most]
    if more := len(first) - len(most):
        lines.append(f"\n  and {more} further reasons")
    if rows := len(left_out) - len(own):
        lines.append(f"\n  {rows} rows and objects of such pictures")
    return "".join(lines)


def _row(file: str) -> str:
    """``q.csv#2``, which counts from 0, as a person counts rows below the head of a table."""
    name, _, number = file.rpartition("#")
    return f"{name}, row {int(number) + 1}" if name and number.isdecimal() else file


def _collected(datasets: Sequence[dict[str, Any]], *, root: Path) -> tuple[list[Record], list[tuple[str, str]], int]:
    entries = [DatasetParams.from_mapping({**entry, "split": "train"}, where=entry["path"]) for entry in datasets]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        out = work / "out"
        out.mkdir()
        try:
            counts = collect(
                entries,
                root=root,
                work=work,
                journals=work,
                out=out,
                max_pixels=MAX_PIXELS,
                workers=_WORKERS,
                engine=Local(_WORKERS),
            )
        except ValueError as error:
            raise ValueError(f"{error}{said_left_out(_quarantine(out / QUARANTINE))}") from error
        return list(read_records(out / RECORDS)), _quarantine(out / QUARANTINE), int(counts["shared_files"])


def _quarantine(file: Path) -> list[tuple[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as stream:
        return [(row["file"], row["reason"]) for row in map(json.loads, stream)]


def _cells(table: Path, name: str) -> list[str]:
    """The first texts in a column."""
    cells = (row.get(name) for row in table_rows(table) if isinstance(row, dict))
    texts = (cell.strip() for cell in cells if isinstance(cell, str) and cell.strip())
    return [text for text, _ in zip(texts, range(_LOOKED_AT), strict=False)]


def _base(paths: Sequence[str], folders: Sequence[Path]) -> Path:
    """The folder below which most of these paths are; of several the first."""
    return max(folders, key=lambda folder: sum((folder / path).is_file() for path in paths[:_LOOKED_AT]))


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in PICTURES)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
