"""The git commit whose source files a stage ran: found from the md5 that dvc.lock records of each of them."""

import functools
import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.dependencies import is_code
from pipeline.lineage.records import StageRecord

_LOOK_BACK = 200  # commits that touch the files


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit with its day (YYYY-MM-DD)."""

    id: str
    day: str


def code_of(record: StageRecord) -> dict[str, str]:
    """The source files that a stage ran, with their md5."""
    return {read.path: read.hash for read in record.reads if is_code(read.path)}


def commit_with(files: Mapping[str, str], *, folder: Path = Path()) -> Commit | None:
    """The newest commit behind HEAD in which every one of the files has its md5.

    Args:
        files: path -> md5; they are what a stage ran.
        folder: the checkout.

    Returns:
        None outside git, and where no such commit is among the last 200 that touch the files: the stage ran code that was
        not committed.
    """
    try:
        log = _git(folder, "log", f"-{_LOOK_BACK}", "--format=%H %cs", "HEAD", "--", *files).decode()
        for line in log.splitlines():
            commit, day = line.split()
            tree = _git(folder, "ls-tree", "-r", "-z", commit, "--", *files).decode()
            entries = (entry.partition("\t") for entry in tree.split("\0") if entry)
            blobs = {path: entry.split()[2] for entry, _, path in entries}  # an entry is "mode kind hash"
            if all(path in blobs and _md5(folder, blobs[path]) == md5 for path, md5 in files.items()):
                return Commit(id=commit, day=day)
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, no repository, or one without a commit
    return None


@functools.cache
def _md5(folder: Path, blob: str) -> str:
    return hashlib.md5(_git(folder, "cat-file", "blob", blob), usedforsecurity=False).hexdigest()


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True).stdout
