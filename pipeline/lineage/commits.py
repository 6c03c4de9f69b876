"""The git commit whose code a stage ran: the newest in which the stage's fingerprint is the one that dvc.lock records."""

import functools
import hashlib
import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.code import FOLDER, PACKAGES, fingerprint, no_collection, source_of
from pipeline.lineage.lock import Recorded, StageRecord

_LOOK_BACK = 200  # commits that touch the code
_contents: dict[str, bytes] = {}


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit with its day (YYYY-MM-DD)."""

    id: str
    day: str


def is_code(read: Recorded) -> bool:
    """Whether what a stage read is its fingerprint rather than data."""
    return Path(read.path).is_relative_to(FOLDER)


def commit_of(record: StageRecord, *, folder: Path = Path()) -> Commit | None:
    """The newest commit behind HEAD with the code that a stage ran.

    Args:
        record: of the stage.
        folder: the checkout.

    Returns:
        None outside git, and where no such commit is among the last 200 that touch the code: the stage ran code that was
        not committed.
    """
    recorded = next((read.hash for read in record.reads if is_code(read)), None)
    stage = record.name.partition("@")[0]
    try:
        for line in _git(folder, "log", f"-{_LOOK_BACK}", "--format=%H %cs", "HEAD", "--", *PACKAGES).decode().splitlines():
            commit, day = line.split()
            if recorded == _fingerprint_at(folder, commit, stage):
                return Commit(id=commit, day=day)
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, no repository, or one without a commit
    return None


@functools.cache
def _fingerprint_at(folder: Path, commit: str, stage: str) -> str | None:
    """The md5 of a stage's fingerprint in a commit; None where it had no such stage, or code that cannot be read."""
    blobs = _blobs(folder, commit)
    try:
        with no_collection():
            text = fingerprint(stage, blobs, lambda name: source_of(name, _contents[blobs[name]]))
    except (ValueError, SyntaxError):
        return None
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@functools.cache
def _blobs(folder: Path, commit: str) -> dict[str, str]:
    """The hash of each file of the code in a commit; their contents are in `_contents`."""
    tree = _git(folder, "ls-tree", "-r", "-z", commit, "--", *PACKAGES).decode()
    entries = (entry.partition("\t") for entry in tree.split("\0") if entry)
    blobs = {path: entry.split()[2] for entry, _, path in entries}  # an entry is "mode kind hash"
    if new := sorted(set(blobs.values()) - _contents.keys()):
        stream = io.BytesIO(_git(folder, "cat-file", "--batch", given="\n".join(new).encode()))
        for blob in new:
            size = int(stream.readline().split()[2])  # the line before a content is "hash kind size"
            _contents[blob] = stream.read(size)
            stream.readline()
    return blobs


def _git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, input=given).stdout
