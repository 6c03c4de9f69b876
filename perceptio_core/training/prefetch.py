"""Prepare the next batches in background threads, in order.

Threads and not processes: reading, JPEG decoding, resizing and tokenising release the interpreter lock, batches need no
shared memory (containers often grant 64 MB of it), and a killed run leaves no worker behind.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(*, load: Callable[[int], T], positions: range, workers: int, ahead: int = 2) -> Iterator[T]:
    """Yield `load(p)` for every p of `positions`, in that order.

    Args:
        load: makes one batch from its position alone. It runs in several threads at once when workers > 1, and must not
            use the global random generators (their order would depend on the threads).
        positions: which batches, in which order.
        workers: background threads; 0 loads in the calling thread.
        ahead: batches kept ready or in the making, per worker.

    Raises:
        Whatever `load` raised, when that batch's turn comes.
    """
    if workers == 0:
        yield from map(load, positions)
        return
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="prefetch")
    try:
        pending: deque[Future[T]] = deque()
        for position in positions:
            pending.append(pool.submit(load, position))
            if len(pending) > workers * ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
