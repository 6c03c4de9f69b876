"""Progress of long steps as plain lines: how far, how fast, how long still.

Lines rather than a bar that redraws itself, because a stage's output is read through DVC, Prefect, files and CI logs.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

_FIRST_LINE_S = 2.0
_LINES_EVERY_S = 10.0


def track(iterable: Iterable[T], *, total: int | None = None, label: str, unit: str) -> Iterator[T]:
    """Yield the items of `iterable` and write a progress line to stderr every ten seconds, and one at the end.

    Args:
        iterable: what is worked through.
        total: number of items; taken from ``len(iterable)`` where it has one. Without it there is no ETA.
        label: what is being done, e.g. ``"teacher depth"``.
        unit: what an item is, in the plural, e.g. ``"images"``.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    start = time.monotonic()
    next_line = start + _FIRST_LINE_S
    done, first = 0, 0.0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        first = first or now - start
        if now >= next_line and done != total:
            _write(line(label=label, unit=unit, done=done, total=total, seconds=now - start, first=first))
            next_line = now + _LINES_EVERY_S
    _write(line(label=label, unit=unit, done=done, total=total, seconds=time.monotonic() - start))


def line(*, label: str, unit: str, done: int, total: int | None, seconds: float, first: float = 0.0) -> str:
    """One progress line, e.g. ``teacher depth: 1200/6000 images, 40.0 images/s, 2m00s left``.

    Args:
        label: what is being done.
        unit: what an item is.
        done: items.
        total: items that there will be, where that is known.
        seconds: that they took.
        first: seconds after which the first was there. What else starts with it (processes, models) would make the rate of
            those that follow look slow, so the rate is theirs; a first item alone has none.
    """
    text = f"{label}: {done}{'' if total is None else f'/{total}'} {unit}"
    if first and done == 1 and total != 1:
        return f"{text}, {duration(seconds)} so far"
    rate = (done - 1) / max(seconds - first, 1e-9) if first and done != total else done / max(seconds, 1e-9)
    text = f"{text}, {rate:{',.0f' if rate >= 999.5 else '.3g'}} {unit}/s"
    if total is not None and 0 < done < total:
        return f"{text}, {duration((total - done) / rate)} left"
    return f"{text}, {duration(seconds)} {'in all' if done == total else 'so far'}"


class Transfer:
    """Progress of several transfers at once in bytes, as one line every ten seconds; any thread may add to it.

    Args:
        label: what is being done.
        total: bytes of all of them, as far as they are known; `expect` adds to it.
    """

    def __init__(self, *, label: str, total: int = 0) -> None:
        self._label, self._total, self._lock = label, total, threading.Lock()
        self._done = self._moved = 0
        self._start = time.monotonic()
        self._next_line = self._start + _FIRST_LINE_S

    def expect(self, count: int) -> None:
        """Some more bytes are to come, or fewer."""
        with self._lock:
            self._total += count

    def add(self, count: int, *, moved: bool = True) -> None:
        """Some bytes are there; those not `moved` were there before, and say nothing of the rate."""
        with self._lock:
            self._done += count
            self._moved += count if moved else 0
            now = time.monotonic()
            if now >= self._next_line:
                _write(self._line(now - self._start))
                self._next_line = now + _LINES_EVERY_S

    def end(self) -> None:
        """Write the last line."""
        with self._lock:
            _write(self._line(time.monotonic() - self._start))

    def _line(self, seconds: float) -> str:
        rate = self._moved / seconds if seconds > 0 else 0.0
        text = f"{self._label}: {amount(self._done)} of {amount(max(self._total, self._done))}, {amount(rate)}/s"
        left = self._total - self._done
        return f"{text}, {duration(left / rate)} left" if left > 0 and rate > 0 else f"{text}, {duration(seconds)} in all"


def amount(size: float) -> str:
    """Bytes as a person says them: ``1_230_000 -> "1.23 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:  # or it would be rounded to 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """``3725 -> "1h02m"``, ``125 -> "2m05s"``, ``4.2 -> "4s"``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _write(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
