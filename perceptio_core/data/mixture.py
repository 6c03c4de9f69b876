"""Which samples a training step sees: a pure function of (seed, step), whatever the number of ranks or workers.

Tasks come in blocks in which each has exactly its share; within a task, samples come in epochs, each a permutation of its
own. So a run that resumes at step s, on any number of ranks, needs nothing but s to go on where it stood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1000  # slots; a task's share is met exactly in each block, to 1/1000


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How often a task was drawn, and of how many samples; `epochs` is how often each of them was."""

    draws: int
    samples: int

    @property
    def epochs(self) -> float:
        """Draws for each sample."""
        return self.draws / self.samples


class MixtureSampler:
    """Draws sample indices by task.

    Args:
        tasks: per task the indices of its samples (`JointDataset.tasks`).
        weights: per task its relative share of the samples drawn; 0 leaves it out.
        seed: of all permutations.

    Raises:
        ValueError: no weight is above 0, a weight is negative, or a task with weight has no samples.
    """

    def __init__(self, *, tasks: Mapping[str, NDArray[np.int64]], weights: Mapping[str, float], seed: int) -> None:
        for task, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"mixture: the weight of {task} is {weight}; allowed are finite numbers from 0")
            if weight > 0 and len(tasks.get(task, ())) == 0:
                raise ValueError(f"mixture: {task} has weight {weight} but no samples; there are {sorted(tasks)}")
        self._names = [task for task, weight in sorted(weights.items()) if weight > 0]
        if not self._names:
            raise ValueError("mixture: at least one task needs a weight above 0")
        self._indices = [np.asarray(tasks[name], np.int64) for name in self._names]
        self._counts = _apportion(np.array([weights[name] for name in self._names], np.float64))
        self._slots = np.repeat(np.arange(len(self._names)), self._counts)
        self._seed = seed
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._epoch = lru_cache(maxsize=4 * len(self._names))(self._make_epoch)

    def indices(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """Sample indices of one rank at one step: every `world_size`-th of the step's `batch_size` samples, task by task.

        So each rank gets as many samples of each task as the others, give or take one: how long a sample is, and what it
        costs besides, depends on its task first of all, and ranks wait for the slowest.

        Args:
            step: from 0.
            batch_size: samples per step over all ranks.
            rank: 0 to world_size - 1.
            world_size: number of ranks.

        Raises:
            ValueError: a number is out of its range.
        """
        if step < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"step {step}, batch_size {batch_size}, rank {rank} of {world_size} is impossible")
        draws = sorted(range(step * batch_size, (step + 1) * batch_size), key=self._task)
        return [self._index(draw) for draw in draws[rank::world_size]]

    def drawn(self, steps: int, batch_size: int) -> dict[str, Drawn]:
        """What all ranks together have drawn after `steps` steps, by task."""
        blocks, rest = divmod(steps * batch_size, _BLOCK)
        last_T = np.bincount(self._block(blocks)[0][:rest], minlength=len(self._names))
        counts_T = blocks * self._counts + last_T
        return {
            name: Drawn(draws=int(count), samples=len(indices))
            for name, count, indices in zip(self._names, counts_T, self._indices, strict=True)
        }

    def _task(self, draw: int) -> int:
        block, slot = divmod(draw, _BLOCK)
        return int(self._block(block)[0][slot])

    def _index(self, draw: int) -> int:
        """The sample of the draw with this number, counted from the start of training."""
        block, slot = divmod(draw, _BLOCK)
        tasks_S, nth_S = self._block(block)
        task = int(tasks_S[slot])
        before = block * int(self._counts[task]) + int(nth_S[slot])
        epoch, place = divmod(before, len(self._indices[task]))
        return int(self._indices[task][self._epoch(task, epoch)[place]])

    def _make_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Per slot the task, and how many slots of this task come before it in the block."""
        tasks_S = self._rng("block", str(block)).permutation(self._slots)
        nth_S = np.empty(_BLOCK, np.int64)
        for task, count in enumerate(self._counts):
            nth_S[tasks_S == task] = np.arange(count)
        return tasks_S, nth_S

    def _make_epoch(self, task: int, epoch: int) -> NDArray[np.int64]:
        return np.asarray(self._rng(self._names[task], str(epoch)).permutation(len(self._indices[task])))

    def _rng(self, *names: str) -> np.random.Generator:
        digest = hashlib.sha256("/".join(["mixture", str(self._seed), *names]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _apportion(weights_T: NDArray[np.float64]) -> NDArray[np.int64]:
    """Slots of a block per task, by largest remainder; every task gets at least one."""
    shares_T = weights_T / weights_T.sum() * (_BLOCK - len(weights_T))
    counts_T = np.floor(shares_T).astype(np.int64) + 1
    order = np.argsort(-(shares_T - np.floor(shares_T)), kind="stable")
    counts_T[order[: _BLOCK - int(counts_T.sum())]] += 1
    return np.asarray(counts_T, np.int64)
