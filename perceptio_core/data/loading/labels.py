"""Which depth-order labels a training run sees: `perceptio_core.params.cotrain.MarkerQuestions` put into effect (ours).

A sample of the task ``marker`` is one marked picture: first the question for the nearest point, then comparisons of two of
its points. Leaving labels out touches nothing else: the other tasks, and the depth codes that go with them, stay. Questions
for the depth code at a point need no labels, and are made here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.shards.entry import Sample
from perceptio_core.params.cotrain import MarkerQuestions
from perceptio_core.seeds import stream

TASK = "marker"
READING_TASK = "reading"
READING = "Which depth code is at point {}?"


def labelled(dataset: JointDataset, *, wanted: MarkerQuestions, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Indices of the marked pictures that may be drawn, ascending.

    Args:
        dataset: one split.
        wanted: which numbers of points, and which turns; a picture that would be left without a turn is left out.
        limit: at most this many, drawn at random; a smaller limit gives a part of what a larger one gives. None: all.
        seed: of the draw.

    Raises:
        ValueError: there are fewer than `limit`; says how many.
    """
    marked = dataset.tasks.get(TASK, np.empty(0, np.int64))
    if not wanted.takes_every_picture:
        found = ((number, dataset.annotation(number)) for number in marked.tolist())
        kept = [number for number, said in found if len(said.points) in wanted.points and turns_of(said.turns, wanted=wanted)]
        marked = np.array(kept, np.int64)
    if limit is None:
        return marked
    if len(marked) < limit:
        points = ", ".join(map(str, wanted.points))
        raise ValueError(f"markers.limit is {limit}; allowed are at most {len(marked)}, the pictures with {points} points")
    rng = stream("labels", seed)
    return np.sort(marked[rng.permutation(len(marked))[:limit]])


def ordered_turns(sample: Sample, *, wanted: MarkerQuestions) -> list[tuple[str, str]]:
    """The turns of a marked picture that are wanted, in the order in which training has them.

    That of the shards, the question for the nearest point first; where ``wanted.first`` is "either", of half of the pictures
    (the sample's key decides of which) that question stands at any later place, and a comparison first.
    """
    turns = turns_of(sample.turns, wanted=wanted)
    rng = stream("first turn", sample.key)
    if wanted.first == "either" and len(turns) > 1 and rng.random() < 0.5:
        turns.insert(int(rng.integers(1, len(turns))), turns.pop(0))
    return turns


def turns_of(turns: Sequence[tuple[str, str]], *, wanted: MarkerQuestions) -> list[tuple[str, str]]:
    """Of a marked picture's turns those of the kinds that are wanted, in their order."""
    nearest, comparisons = turns[:1], turns[1:]
    return [
        *(nearest if "nearest" in wanted.kinds else ()),
        *(comparisons if "comparison" in wanted.kinds else ()),
    ]


def readings(sample: Sample) -> list[tuple[str, int]]:
    """A question for the code of the cell that each marked point lies in, and the code; in an order that the sample decides.

    Args:
        sample: a marked picture with its depth codes, a square grid over the whole picture.
    """
    points, codes_N = sample.points, sample.depth_codes or []
    grid = math.isqrt(len(codes_N))
    turns = []
    for i in stream("readings", sample.key).permutation(len(points)):
        row, column = points[i].y * grid // sample.image.height, points[i].x * grid // sample.image.width
        turns.append((READING.format(points[i].letter), codes_N[row * grid + column]))
    return turns
