"""Brings the shards of coming steps from the store before a step asks for them.

The order of samples is known in advance. So a thread walks ahead of the step that is being read and fetches each shard that the
cache lacks, in the order of need. It stops where the steps in between need more than the cache can hold at once. It decides
when a shard comes, never which sample.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from perceptio_core.data.loading.shard_cache import ShardCache

_FARTHEST = 1000  # steps; a set that fits into the cache is not walked through to its end at once
logger = logging.getLogger(__name__)


class ReadAhead:
    """A thread that keeps ahead of the steps, and ends with the process.

    Args:
        cache: where the shards go.
        needs: the names of the shards that a step reads; called from the thread.
        steps: of the whole training.
    """

    def __init__(self, cache: ShardCache, *, needs: Callable[[int], Sequence[str]], steps: int) -> None:
        self._cache, self._needs, self._steps = cache, needs, steps
        self._step = 0
        self._moved, self._starting = threading.Event(), threading.Lock()
        self._last: dict[str, int] = {}  # of the shards on the way, the last step of it that needs each, as far as was looked
        self._next = 0  # the first step that was not looked at
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def reached(self, step: int) -> None:
        """Say that a step is being read; from any thread."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        self._step = step
        self._moved.set()

    def _run(self) -> None:
        while True:
            self._moved.wait()
            self._moved.clear()
            while self._goes_on():
                pass

    def _goes_on(self) -> bool:
        """Look at one step more and bring what it needs; whether there was room for that."""
        step = self._step
        if not step <= self._next <= step + _FARTHEST:  # the training has left us behind, or gone on elsewhere
            self._next = step
            self._last.clear()
        if self._next >= min(self._steps, step + _FARTHEST):
            return False
        last = {name: at for name, at in self._last.items() if at >= step} | dict.fromkeys(self._needs(self._next), self._next)
        if sum(map(self._cache.size, last)) > self._cache.limit:
            return False
        try:
            # First those that are here already: used again, none of them makes room for the others.
            for name in sorted(last, key=lambda name: name not in self._last):
                with self._cache.opened(name):
                    pass
        except OSError as error:
            logger.warning("reading ahead: %s", error)  # whoever needs it will try again, and say so
            return False
        self._last = last
        self._next += 1
        return True
