"""``perceptio clean``: the unfinished work that lies in ``.work/``, and the removal of what no run will go on with.

A stage's work lies in a folder named by what it computes from, so that a change of parameters, data or code leaves the older
folder behind. The next run goes on with the newest one, unless the stage's output is newer still.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from perceptio_core.params.values import SECTIONS
from perceptio_core.progress import amount
from stages.common import WORK, StagePaths


@dataclass(frozen=True, kw_only=True)
class Work:
    """A folder of unfinished work.

    Attributes:
        folder: below ``.work/``.
        size: of its files, in bytes.
        changed: when something in it changed last, in seconds since the epoch.
        state: "at work" (a stage holds it), "next" (the next run goes on with it) or "left" (no run will).
    """

    folder: Path
    size: int
    changed: float
    state: str


def clean(*, remove: bool, everything: bool) -> None:
    """List all unfinished work of this checkout with its size; remove it, if that is wanted and no stage is at work on it.

    Args:
        remove: remove what no run will go on with.
        everything: remove what the next run would go on with, too.
    """
    freed, kept = 0, 0
    with ExitStack() as held:
        for work in sorted(_found(held), key=lambda work: work.folder):
            goes = work.state == "left" or (everything and work.state == "next")
            words = {"at work": "a stage is at work on it", "next": "the next run goes on with it", "left": "left behind"}
            print(f"{amount(work.size):>8}  {_age(work.changed):>12}  {work.folder}  ({words[work.state]})")
            if goes and remove:
                shutil.rmtree(work.folder)
            freed, kept = freed + work.size * goes, kept + work.size * (not goes)
    done = "freed" if remove else "would be freed by --yes"
    print(f"{amount(freed)} {done}; {amount(kept)} of unfinished work stay")


def _found(held: ExitStack) -> Iterator[Work]:
    """All unfinished work. What is not at work stays so until `held` ends: its stages would wait."""
    for stage in SECTIONS:
        for place in WORK.glob(f"*/{stage}"):
            profile = place.parent.name
            busy = _busy(place.parent, stage, held)
            groups: dict[str, list[Path]] = {}
            for folder in (one for one in place.iterdir() if one.is_dir()):
                groups.setdefault(folder.name.rpartition("-")[0], []).append(folder)
            for variant, folders in groups.items():
                changed = {folder: _changed(folder) for folder in folders}
                out = StagePaths(profile).out(stage, variant or None)
                made = out.stat().st_mtime if out.is_dir() else 0.0
                for folder in folders:
                    if busy:
                        state = "at work"
                    elif changed[folder] == max(changed.values()) and changed[folder] > made and folder.suffix == "":
                        state = "next"
                    else:
                        state = "left"
                    yield Work(folder=folder, size=_size(folder), changed=changed[folder], state=state)


def _busy(folder: Path, stage: str, held: ExitStack) -> bool:
    """Whether a process has claimed the stage, or a variant of it (`StagePaths.claim`); else the claim is ours meanwhile."""
    for path in [*folder.glob(f"{stage}.lock"), *folder.glob(f"{stage}@*.lock")]:
        lock = held.enter_context(path.open("a+", encoding="utf-8"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _changed(folder: Path) -> float:
    """When something in a folder changed last; 0 if there is no such folder."""
    return max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")]) if folder.is_dir() else 0.0


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _age(changed: float) -> str:
    hours = (time.time() - changed) / 3600
    return f"{hours:.1f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"
