"""Progress of long steps as plain lines: how far, how fast, how long still.

Lines rather than a bar that redraws itself, because a stage's output is read through DVC, Prefect, files and CI logs.
"""

import sys
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
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now >= next_line and done != total:
            _write(line(label=label, unit=unit, done=done, total=total, seconds=now - start))
            next_line = now + _LINES_EVERY_S
    _write(line(label=label, unit=unit, done=done, total=total, seconds=time.monotonic() - start))


def line(*, label: str, unit: str, done: int, total: int | None, seconds: float) -> str:
    """One progress line, e.g. ``teacher depth: 1200/6000 images, 40.0 images/s, 2m00s left``."""
    rate = done / seconds if seconds > 0 else 0.0
    text = f"{label}: {done}{'' if total is None else f'/{total}'} {unit}, {rate:.3g} {unit}/s"
    if total is not None and done < total and rate > 0:
        return f"{text}, {duration((total - done) / rate)} left"
    return f"{text}, {duration(seconds)}" + ("" if total is None or done < total else " in all")


def duration(seconds: float) -> str:
    """``3725 -> "1h02m"``, ``125 -> "2m05s"``, ``4.2 -> "4s"``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _write(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
