"""Independent units of work, done by an engine: in this process, by a pool of processes, or by whatever else keeps to `Engine`.

A unit has the same result whoever works on it, and may be worked on twice: by a worker that was lost, and then by another.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from perceptio_core.tied import tie_worker

Unit = TypeVar("Unit")
Result = TypeVar("Result")
_AHEAD = 2  # units for each process of a pool, so that none waits for its next one
_make: Callable[[], Callable[[Any], Any]]  # a process of a pool gets it as it starts
_work: Callable[[Any], Any] | None = None


class Engine(Protocol):
    """What works on units."""

    def map(self, make: Callable[[], Callable[[Unit], Result]], units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        """Every unit with its result, in the order in which they are done.

        Args:
            make: gives what works on a unit; called at most once by each worker, so it is where a model is loaded. It is
                pickled, and so are units and results.
            units: taken one by one, as workers become free.

        Raises:
            Exception: what `make` or the work on a unit raised.
        """
        ...


class Local:
    """Works in the calling process, or in processes that end with it where there are several workers and units.

    Args:
        workers: most processes.
        gpus: what CUDA_VISIBLE_DEVICES is to be in each of them; where there are several, they count instead of `workers`.
    """

    def __init__(self, workers: int = 1, *, gpus: Sequence[str] = ()) -> None:
        self._gpus = list(gpus) if len(gpus) > 1 else []
        self._workers = len(self._gpus) or workers

    def map(self, make: Callable[[], Callable[[Unit], Result]], units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        """See `Engine.map`. In the calling process the units are done in their order."""
        coming = iter(units)
        first = list(islice(coming, self._workers))
        if len(first) > 1:
            yield from self._by_processes(make, chain(first, coming), workers=len(first))
        elif first:
            work = make()
            for unit in chain(first, coming):
                yield unit, work(unit)

    def _by_processes(
        self, make: Callable[[], Callable[[Unit], Result]], units: Iterator[Unit], *, workers: int
    ) -> Iterator[tuple[Unit, Result]]:
        # A forked copy of a process that has run torch can hang in its thread pool; a spawned one starts clean.
        context = multiprocessing.get_context("spawn")
        gpus: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
        for gpu in self._gpus:
            gpus.put(gpu)
        start = (make, gpus if self._gpus else None)
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=start) as pool:
            running: dict[Future[Result], Unit] = {}
            try:
                for unit in units:
                    running[pool.submit(_work_on, unit)] = unit
                    if len(running) == _AHEAD * workers:
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            yield running.pop(future), future.result()
                for future in as_completed(running):
                    yield running[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _start(make: Callable[[], Callable[[Any], Any]], gpus: multiprocessing.SimpleQueue[str] | None) -> None:
    global _make  # a process pool starts its workers through module state
    tie_worker()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    _make = make


def _work_on(unit: Any) -> Any:
    global _work
    if _work is None:  # not as the process starts: what went wrong then, a pool does not say
        _work = _make()
    return _work(unit)


def cores() -> int:
    """Processor cores that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process would see, by the names that CUDA_VISIBLE_DEVICES takes."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device.strip()]
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listing.splitlines()))]
