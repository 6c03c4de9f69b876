"""A pool of worker processes that end with the process that started them, and how many there may be."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from typing import Any, TypeVar

from perceptio_core.tied import tie_worker

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_they_end(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Iterator[Result]:
    """`work(job)` for every job, each in some process in which `start(*arguments)` ran first; the results as they come.

    A job is taken from `jobs` when a process is free for it. With one worker everything happens in the calling process.
    """
    if workers == 1:
        start(*arguments)
        yield from map(work, jobs)
        return
    # A forked copy of a process that has run torch can hang in its thread pool; a spawned one starts clean.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(start, arguments)) as pool:
        running: set[Future[Result]] = set()
        try:
            for job in jobs:
                running.add(pool.submit(work, job))
                if len(running) == workers:
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ended)
            yield from (future.result() for future in as_completed(running))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    tie_worker()
    start(*arguments)
