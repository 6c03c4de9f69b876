"""Two models on the same questions: is the one better than the other, or is it chance?

Paired, because both were asked the same things: what is hard for both cancels out. Reads the predictions files of the
stage `evaluate`, or any JSON lines with `item_id` and `correct`. Each line counts alike and by itself: for referring
segmentation that is the mean IoU (gIoU, not cIoU); the rotations of an MMBench question and the pairs of MME hang together,
so that their p and interval come out too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.jsonl import read_jsonl

_SHOWN = 3  # of the items that one file lacks


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A minus B, in percent.

    Attributes:
        n: questions.
        first, second: mean of `correct` of A and of B.
        difference: of the means.
        low, high: its 95 % interval, by the paired bootstrap.
        only_first, only_second: questions that A alone, or B alone, got right; None where `correct` is no yes or no (IoU).
        p: two-sided p of McNemar's exact test on these; None likewise.
    """

    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int | None
    only_second: int | None
    p: float | None

    def __str__(self) -> str:
        text = (
            f"A {self.first:.2f}, B {self.second:.2f}, A - B {self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}] "
            f"on {self.n} questions (95 %, paired bootstrap)"
        )
        if self.p is None:
            return text
        return f"{text}\nright in A alone {self.only_first}, in B alone {self.only_second}: p = {self.p:.3g} (McNemar, exact)"


def compare(first: Path, second: Path, *, bootstrap: Bootstrap | None = None) -> Comparison:
    """Compare two predictions files of one benchmark.

    Args:
        first: A, JSON lines with `item_id` and `correct` in [0, 1] (hit, or IoU of a mask).
        second: B, of the same questions in any order.
        bootstrap: how the interval is computed.

    Raises:
        ValueError: a file is malformed or empty, names a question twice, or lacks one that the other has.
    """
    ours, theirs = _read(first), _read(second)
    for path, lacking in ((second, ours.keys() - theirs.keys()), (first, theirs.keys() - ours.keys())):
        if lacking:
            shown = ", ".join(sorted(lacking)[:_SHOWN])
            raise ValueError(f"{path}: {len(lacking)} questions of the other file are not in it, such as {shown}")
    values_n2 = np.array([(value, theirs[item]) for item, value in ours.items()])
    differences_n1 = values_n2[:, :1] - values_n2[:, 1:]
    low, high = (bootstrap or Bootstrap()).interval([differences_n1], lambda means: means[0][:, 0], top=None)
    only_first = only_second = p = None
    if np.isin(values_n2, (0.0, 1.0)).all():
        only_first, only_second = int((differences_n1 > 0).sum()), int((differences_n1 < 0).sum())
        p = mcnemar(only_first, only_second)
    return Comparison(
        n=len(values_n2),
        first=100 * float(values_n2[:, 0].mean()),
        second=100 * float(values_n2[:, 1].mean()),
        difference=100 * float(differences_n1.mean()),
        low=100 * low,
        high=100 * high,
        only_first=only_first,
        only_second=only_second,
        p=p,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test (1947): that of `only_first` heads in fair tosses, as many as there are of both."""
    tosses = only_first + only_second
    tail = sum(math.comb(tosses, heads) for heads in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**tosses)


def _read(path: Path) -> dict[str, float]:
    values: dict[str, float] = {}
    for row in read_jsonl(path, keys=("item_id", "correct")):
        item, correct = str(row["item_id"]), row["correct"]
        if not isinstance(correct, int | float) or not 0 <= correct <= 1:
            raise ValueError(f"{path}: question {item}: correct is {correct!r}; allowed are numbers from 0 to 1")
        if item in values:
            raise ValueError(f"{path}: question {item} stands in it twice")
        values[item] = float(correct)
    if not values:
        raise ValueError(f"{path}: no predictions in it")
    return values
