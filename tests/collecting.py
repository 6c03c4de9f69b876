"""`collect` with its outputs read back, and readers with theirs told apart."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptio_core.data.manifest.collect import collect
from perceptio_core.data.manifest.manifest import (
    QUARANTINE,
    RECORDS,
    ImageRow,
    read_images,
    read_records,
    write_images,
    write_quarantine,
    write_records,
)
from perceptio_core.data.records import Record, Refused
from perceptio_core.engine import Local
from perceptio_core.params.sources import DatasetParams


@dataclass(frozen=True, kw_only=True)
class Collected:
    images: list[ImageRow]
    records: list[Record]
    quarantine: list[Refused]
    counts: dict[str, Any]


def parted(reader: Callable[..., Iterator[Record | Refused]], *place: Path, **how: Any) -> tuple[list[Record], list[Refused]]:
    """What a reader yields, as records and what is refused."""
    rows = list(reader(*place, **how))
    return [row for row in rows if isinstance(row, Record)], [row for row in rows if isinstance(row, Refused)]


def write_manifest(
    folder: Path, *, images: Iterable[ImageRow], records: Iterable[Record] = (), quarantine: Iterable[Refused] = ()
) -> None:
    """What the stage `sources` writes of these rows."""
    write_images(folder, images)
    write_records(folder / RECORDS, records, named=folder)
    with (folder / QUARANTINE).open("w", encoding="utf-8") as stream:
        write_quarantine(stream, quarantine)


def collected(
    datasets: Sequence[DatasetParams],
    *,
    root: Path,
    work: Path,
    journals: Path | None = None,
    max_pixels: int = 10**6,
    held_out: Sequence[str] = (),
    read_back: bool = True,
) -> Collected:
    out = work / "out"
    out.mkdir(parents=True, exist_ok=True)
    counts = collect(
        datasets,
        root=root,
        work=work,
        journals=journals or work,
        out=out,
        max_pixels=max_pixels,
        workers=2,
        engine=Local(),
        held_out=held_out,
    )
    if not read_back:
        return Collected(images=[], records=[], quarantine=[], counts=counts)
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    return Collected(
        images=list(read_images(out)),
        records=list(read_records(out / RECORDS)),
        quarantine=[Refused(**json.loads(line)) for line in lines],
        counts=counts,
    )
