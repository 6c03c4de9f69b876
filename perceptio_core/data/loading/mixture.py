"""Which samples a training step sees: a pure function of (seed, step), whatever the number of workers.

Tasks come in blocks in which each has exactly its share; within a task, samples come in epochs, each a permutation of its
own. So a run that resumes at step s needs nothing but s to go on where it stood. `perceptio_core.data.loading.balance` deals
a step's samples to however many ranks there are.

By default an epoch is any permutation, and each step may need any shard. With a window of W shards it walks over the shards
in a random order and mixes the samples of W neighbours of this order, so that each shard is needed for one stretch of the
epoch: for shards that come from a store into a cache smaller than they are together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceptio_core.seeds import stream

_BLOCK = 1000  # slots; a task's share is met exactly in each block, to 1/1000

_MADE_FROM = {
    "referring": ("referring", "expressions with masks"),
    "conversation": ("conversation", "questions with answers"),
    "marker": ("marker", "marked pictures with depth"),
    "depth_map": ("depth_map", "pictures with depth"),
    "reading": ("marker", "marked pictures with depth"),
}
"""Per task of a mixture: the task whose samples it draws, and what such samples are made from."""


class Draw(NamedTuple):
    """What a step sees: the sample with this index, for this task of the mixture."""

    task: str
    sample: int


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What a task had of the draws.

    Attributes:
        draws: how often it was drawn.
        samples: how many it has.
        share: of all draws.
        wanted: the share that the weights ask for.
    """

    draws: int
    samples: int
    share: float
    wanted: float

    @property
    def epochs(self) -> float:
        """Draws for each sample."""
        return self.draws / self.samples


def require_samples(weights: Mapping[str, float], counts: Mapping[str, int]) -> None:
    """See that every task of a mixture has training samples: one without would leave its share to the others unsaid.

    Args:
        weights: of the mixture's tasks.
        counts: training samples by task, as `joint_shards` counts them.

    Raises:
        ValueError: a task with weight has none; says which, what it is made from, and what there is.
    """
    for task, weight in weights.items():
        if weight > 0 and not counts.get(_MADE_FROM[task][0]):
            there = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
            raise ValueError(
                f"cotrain.mixture.{task}: weight {weight:g}, but the training data give this task no sample: none of "
                f"sources.datasets has {_MADE_FROM[task][1]}. Set cotrain.mixture.{task} to 0, or add such data. "
                f"Samples by task: {there}"
            )


class MixtureSampler:
    """Draws samples by task.

    Args:
        tasks: per task the indices of its samples (`JointDataset.tasks`); two tasks may have the same ones.
        weights: per task its relative share of the samples drawn; 0 leaves it out.
        seed: of all permutations.
        shard_S: number of the shard that each sample index lies in; only a window needs it.
        window: shards of a task whose samples are mixed with each other; None mixes all.

    Raises:
        ValueError: no weight is above 0, a weight is negative, or a task with weight has no samples.
    """

    def __init__(
        self,
        *,
        tasks: Mapping[str, NDArray[np.int64]],
        weights: Mapping[str, float],
        seed: int,
        shard_S: NDArray[np.int64] | None = None,
        window: int | None = None,
    ) -> None:
        for task, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"mixture: the weight of {task} is {weight}; allowed are finite numbers from 0")
            if weight > 0 and len(tasks.get(task, ())) == 0:
                raise ValueError(
                    f"mixture: {task} has weight {weight} but no samples (with weight 0 it is left out); "
                    f"there are {', '.join(name for name in sorted(tasks) if len(tasks[name]))}"
                )
        self._names = [task for task, weight in sorted(weights.items()) if weight > 0]
        if not self._names:
            raise ValueError("mixture: at least one task needs a weight above 0")
        self._indices = [np.asarray(tasks[name], np.int64) for name in self._names]
        weights_T = np.array([weights[name] for name in self._names], np.float64)
        self._wanted_T = weights_T / weights_T.sum()
        self._counts = _apportion(weights_T)
        self._slots = np.repeat(np.arange(len(self._names)), self._counts)
        self._seed = seed
        self._shard_S, self._window = shard_S, window
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._epoch = lru_cache(maxsize=4 * len(self._names))(self._make_epoch)

    def draws(self, step: int, batch_size: int) -> list[Draw]:
        """The `batch_size` draws of a step, counted from 0, task by task."""
        numbers = sorted(range(step * batch_size, (step + 1) * batch_size), key=self._task)
        return [Draw(self._names[self._task(number)], self._index(number)) for number in numbers]

    def drawn(self, steps: int, batch_size: int) -> dict[str, Drawn]:
        """What all ranks together have drawn after `steps` steps, by task."""
        blocks, rest = divmod(steps * batch_size, _BLOCK)
        last_T = np.bincount(self._block(blocks)[0][:rest], minlength=len(self._names))
        counts_T = blocks * self._counts + last_T
        return {
            name: Drawn(draws=int(count), samples=len(indices), share=int(count) / (steps * batch_size), wanted=float(wanted))
            for name, count, indices, wanted in zip(self._names, counts_T, self._indices, self._wanted_T, strict=True)
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
        tasks_S = stream("mixture", self._seed, "block", block).permutation(self._slots)
        nth_S = np.empty(_BLOCK, np.int64)
        for task, count in enumerate(self._counts):
            nth_S[tasks_S == task] = np.arange(count)
        return tasks_S, nth_S

    def _make_epoch(self, task: int, epoch: int) -> NDArray[np.int64]:
        """The order of a task's samples in an epoch, as places in its list of indices."""
        rng, indices_T = stream("mixture", self._seed, self._names[task], epoch), self._indices[task]
        if self._window is None or self._shard_S is None:
            return np.asarray(rng.permutation(len(indices_T)))
        shards, shard_T = np.unique(self._shard_S[indices_T], return_inverse=True)
        # The samples of the shard at place p of the walk lie anywhere between p and p + window.
        place_T = rng.permutation(len(shards))[shard_T] + self._window * rng.random(len(indices_T))
        return np.asarray(np.argsort(place_T, kind="stable"))


def _apportion(weights_T: NDArray[np.float64]) -> NDArray[np.int64]:
    """Slots of a block per task, by largest remainder; every task gets at least one."""
    shares_T = weights_T / weights_T.sum() * (_BLOCK - len(weights_T))
    counts_T = np.floor(shares_T).astype(np.int64) + 1
    order = np.argsort(-(shares_T - np.floor(shares_T)), kind="stable")
    counts_T[order[: _BLOCK - int(counts_T.sum())]] += 1
    return np.asarray(counts_T, np.int64)
