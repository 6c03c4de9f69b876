"""The graph of what dvc.lock records: which stage made a file, from what, and whether both ends still agree.

A stage's record holds the hash of every file and folder that it read and wrote, its parameters and its command. An edge
leads from a stage to one that wrote what it read. DVC keeps the listing of a folder's files in its cache, by the folder's
hash; with it, the hash of a file inside a folder is compared too.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from pipeline.code import STAGE
from pipeline.lineage.lock import Recorded, StageRecord, read_lock

LOCK_FILE = Path("dvc.lock")
ARTIFACTS = Path("artifacts")
_CACHE = Path(".dvc/cache/files/md5")
_FOLDER = ".dir"  # what DVC puts behind the hash of a folder's listing


class LineageGraph:
    """The stages that dvc.lock records, each after those that it reads from; but not `code`, which runs every time."""

    def __init__(self, records: Sequence[StageRecord]) -> None:
        self.records = {record.name: record for record in records}

    @classmethod
    def from_lock(cls, path: Path = LOCK_FILE) -> "LineageGraph":
        """Read dvc.lock; without one the graph is empty."""
        return cls([record for record in read_lock(path=path, outputs=ARTIFACTS) if record.name != STAGE])

    def makers(self, path: str) -> list[str]:
        """The stages whose output `path` is, lies in, or holds."""
        return [record.name for record in self.records.values() if any(_related(path, output.path) for output in record.writes)]

    def upstream(self, stage: str) -> list[str]:
        """The stages that `stage` read from, in order."""
        found = {maker for read in self.records[stage].reads for maker in self.makers(read.path)}
        return [name for name in self.records if name in found]

    def downstream(self, stage: str) -> list[str]:
        """The stages that read what `stage` wrote, in order."""
        return [name for name in self.records if stage in self.upstream(name)]

    def ancestors(self, stage: str) -> list[str]:
        """Every stage that `stage` comes from, however far back, in order."""
        found: set[str] = set()
        waiting = self.upstream(stage)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.upstream(name)
        return [name for name in self.records if name in found]

    def agrees(self, read: Recorded) -> bool | None:
        """Whether what a stage read has the bytes that the present record of its maker says.

        Returns:
            None where it cannot be told: nobody made it, or a folder's listing is not in DVC's cache.
        """
        outputs = [out for name in self.makers(read.path) for out in self.records[name].writes if _related(read.path, out.path)]
        if not outputs:
            return None
        if outputs[0].path == read.path:
            return outputs[0].hash == read.hash
        files: list[tuple[str, str]] = []
        for out in outputs:
            inside = listing(out)
            if inside is None:
                return None
            files += [(f"{out.path}/{name}", md5) for name, md5 in inside]
        below = [(name, md5) for name, md5 in files if _is_in(name, read.path)]
        if [name for name, _ in below] == [read.path]:
            return below[0][1] == read.hash
        return _listing_hash((name.removeprefix(f"{read.path}/"), md5) for name, md5 in below) == read.hash


def listing(recorded: Recorded) -> list[tuple[str, str]] | None:
    """The files of a recorded folder with their md5, from DVC's cache; None if it is not there, or no folder."""
    text = content(recorded) if recorded.hash.endswith(_FOLDER) else None
    return None if text is None else [(row["relpath"], row["md5"]) for row in json.loads(text)]


def content(recorded: Recorded) -> str | None:
    """The text that DVC's cache has under a recorded hash; None if it is not there."""
    path = _CACHE / recorded.hash[:2] / recorded.hash[2:]
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _listing_hash(files: Iterable[tuple[str, str]]) -> str:
    """The hash that DVC gives to a folder of these files."""
    rows = [{"md5": md5, "relpath": name} for name, md5 in sorted(files)]
    return hashlib.md5(json.dumps(rows, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + _FOLDER


def _related(one: str, other: str) -> bool:
    return _is_in(one, other) or _is_in(other, one)


def _is_in(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
