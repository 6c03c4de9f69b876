"""Units of work that any number of workers share: processes of one machine or of many, with nothing in common but a folder.

A worker claims a unit before it works on it by linking a file to the name ``<unit>.0``, which the file system grants to one
alone, and moves that file's time of change on while it lives. A worker whose claim has not moved for minutes is dead,
and so is one whose process is gone, where that can be seen. Then whoever makes ``<unit>.1`` has taken the unit over. No
claim of another is ever removed or renamed, so that nobody can take away a claim that is newer than the one he saw.

A unit may all the same be made twice, by a worker that was only asleep; so what a worker makes has to appear whole, in one
step, and to be the same bytes whoever makes it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STALE_AFTER_S = 180.0
"""A claim that does not move for so long is a dead worker's. Network disks may show a change up to a minute late."""

BEATS = 6
"""How often a claim is moved within that time."""

_SAY_EVERY_S = 60.0
_log = logging.getLogger(__name__)


class Units:
    """The units that one worker sees, as a context in which its claims are kept alive.

    Args:
        folder: of the claims, on a disk that all workers share.
        names: of all units, the same for every worker; each a file name.
        finished: whether a unit has been made, by whomever.
        stale_after_s: seconds after which an unmoved claim is a dead worker's.

    Attributes:
        left: the units that this worker does not know to be finished.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        finished: Callable[[str], bool],
        stale_after_s: float = STALE_AFTER_S,
    ) -> None:
        self._folder, self._finished, self._stale_after_s = folder, finished, stale_after_s
        self.left = dict.fromkeys(name for name in names if not finished(name))
        self._mine: dict[str, Path] = {}
        self._theirs: list[str] = []
        self._watched: dict[Path, tuple[int, float]] = {}  # time of change, and when we first saw it
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        with contextlib.suppress(FileExistsError):  # `exist_ok` raises it if the folder above is removed just then
            self._folder.mkdir()
        self._heart.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._heart.join()

    def free(self) -> Iterator[str]:
        """Claim units, one whenever the next is asked for, until none is free at this moment."""
        passed: list[str] = []  # others are at work on them: no more than there are others
        for name in list(self.left):
            if name in self._mine or self._is_finished(name):
                continue
            if not self._claim(name):
                passed.append(name)
            elif self._finished(name):  # at the last moment, by the one that it was taken over from
                del self._mine[name]
            else:
                yield name
                passed = [other for other in passed if not self._is_finished(other)]

    def wait(self, *, ask_every_s: float = 2.0) -> None:
        """Wait until a unit has been finished, or one is free; not at all if one has been since this was last asked."""
        started = said = time.monotonic()
        while True:
            ended = [name for name in list(self.left) if self._is_finished(name)]
            if ended or not self.left or any(self._is_free(name) for name in self.left if name not in self._mine):
                return
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                _log.info("waiting since %.0f s for %d units that others are at work on", said - started, len(self.left))
            time.sleep(ask_every_s)

    def made_by_others(self) -> list[str]:
        """The units that others are known to have finished since this was last asked."""
        made, self._theirs = self._theirs, []
        return made

    def _is_finished(self, name: str) -> bool:
        if not self._finished(name):
            return False
        if name in self.left:
            del self.left[name]
            if self._mine.pop(name, None) is None:
                self._theirs.append(name)
        return True

    def _claim(self, name: str) -> bool:
        """Whether the unit is ours now."""
        generation = self._generation(name)
        if generation is not None and not self._is_dead(self._path(name, generation)):
            return False
        path = self._path(name, 0 if generation is None else generation + 1)
        # Written before it counts: for a claim that does not say whose it is, others would wait as if its maker lived.
        written = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            written.write_text(json.dumps(_myself()), encoding="utf-8")
            os.link(written, path)
        except FileExistsError:
            return False
        finally:
            written.unlink(missing_ok=True)
        if generation is not None:
            _log.info("took over %s from a worker that is gone", name)
        self._mine[name] = path
        return True

    def _is_free(self, name: str) -> bool:
        generation = self._generation(name)
        return generation is None or self._is_dead(self._path(name, generation))

    def _generation(self, name: str) -> int | None:
        """Number of the newest claim to a unit; None without any."""
        number = -1
        while self._path(name, number + 1).exists():
            number += 1
        return None if number < 0 else number

    def _path(self, name: str, generation: int) -> Path:
        return self._folder / f"{name}.{generation}"

    def _is_dead(self, claim: Path) -> bool:
        """Whether the worker that made a claim is gone. Its clock and ours need not agree: ours alone measures."""
        now = time.monotonic()
        try:
            changed, content = claim.stat().st_mtime_ns, claim.read_text(encoding="utf-8")
        except FileNotFoundError:  # given up by its maker
            return False
        if self._watched.get(claim, (None, now))[0] != changed:
            self._watched[claim] = changed, now
        if now - self._watched[claim][1] > self._stale_after_s:
            return True
        try:
            holder = json.loads(content)
        except ValueError:  # a crash of its machine has cut it
            return False
        return bool(holder["kernel"] == _kernel() is not None and _process_started(holder["pid"]) != holder["started"])

    def _beat(self) -> None:
        while not self._ended.wait(self._stale_after_s / BEATS):
            for name, path in list(self._mine.items()):
                try:
                    if not self._finished(name):
                        os.utime(path)
                except FileNotFoundError:  # all is made, and the folder is gone
                    return
                except OSError as error:
                    _log.warning("%s: %s; others may take the unit over", path, error)


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "kernel": _kernel(), "pid": pid, "started": _process_started(pid)}


def _kernel() -> str | None:
    """Where process numbers mean the same: one boot of one machine and one PID namespace; None where it cannot be told."""
    if sys.platform != "linux":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _process_started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
