"""What dvc.lock records of each stage: its command, what it read and wrote, and its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A file or folder with the hash that DVC recorded."""

    path: str
    hash: str
    size: int
    files: int


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage as it last ran: its command, what it read and wrote, and the parameters it was given."""

    name: str
    command: str
    reads: tuple[Recorded, ...]
    writes: tuple[Recorded, ...]
    parameters: Mapping[str, Any]


def read_lock(*, path: Path, outputs: Path) -> list[StageRecord]:
    """The stages in `dvc.lock` that wrote below `outputs`, each after those that it reads from.

    Empty without a lock file: a stage that runs by hand has none.
    """
    if not path.is_file():
        return []
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    records = [_record(name, entry) for name, entry in content.get("stages", {}).items()]
    mine = [record for record in records if any(Path(out.path).is_relative_to(outputs) for out in record.writes)]
    return _in_order(mine)


def _record(name: str, entry: Mapping[str, Any]) -> StageRecord:
    parameters: dict[str, Any] = {}
    for values in entry.get("params", {}).values():
        parameters |= values
    command = entry["cmd"]
    return StageRecord(
        name=name,
        command=command if isinstance(command, str) else "; ".join(command),
        reads=tuple(_recorded(row) for row in entry.get("deps", [])),
        writes=tuple(_recorded(row) for row in entry.get("outs", [])),
        parameters=parameters,
    )


def _recorded(row: Mapping[str, Any]) -> Recorded:
    return Recorded(
        path=row["path"], hash=str(row.get(row.get("hash", "md5"), "")), size=row.get("size", 0), files=row.get("nfiles", 1)
    )


def _in_order(records: list[StageRecord]) -> list[StageRecord]:
    """Topological order by who reads what another wrote; ties by name."""
    left, ordered = sorted(records, key=lambda record: record.name), []
    while left:
        ready = [record for record in left if not any(_reads_from(record, other) for other in left if other is not record)]
        ordered += ready or left  # a circle cannot come from DVC; should the file hold one, show it as it stands
        left = [record for record in left if record not in ordered]
    return ordered


def _reads_from(record: StageRecord, other: StageRecord) -> bool:
    reads, writes = [Path(row.path) for row in record.reads], [Path(row.path) for row in other.writes]
    return any(read.is_relative_to(write) or write.is_relative_to(read) for read in reads for write in writes)
