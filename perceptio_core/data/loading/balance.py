"""Deals a step's samples to the ranks and micro-batches that work on it at the same time, so that none waits for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def deal(samples: Sequence[Item], lengths: Sequence[int], *, parts: int) -> list[list[Item]]:
    """Divide samples into parts of equal number (give or take one) and nearly equal length.

    In rounds, each of which gives one sample to every part: the longest of the round to the part that has least so far. So
    where the samples come task by task, each part also gets as many of each task as the others, give or take two (a round
    may end one task and begin the next).

    Args:
        samples: to divide.
        lengths: of each sample, in any unit.
        parts: how many, at least 1.

    Returns:
        The parts, the longest first: dealt to ranks to and fro (0, 1, 2, then 2, 1, 0), they even out once more.
    """
    dealt: list[list[Item]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for start in range(0, len(samples), parts):
        longest_first = sorted(range(start, min(start + parts, len(samples))), key=lambda place: -lengths[place])
        for part, place in zip(sorted(range(parts), key=loads.__getitem__), longest_first, strict=False):
            dealt[part].append(samples[place])
            loads[part] += lengths[place]
    return [dealt[part] for part in sorted(range(parts), key=lambda part: -loads[part])]
