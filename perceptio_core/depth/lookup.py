"""The acceptance test of a codebook: can the nearest of several marked points be read off the decoded map?

AURORA's programmatic look-up (arXiv 2412.03548). The points are those of depth-order questions, the truth is the map that
was encoded, so the score is the codebook's alone: what it loses is lost to every model that writes its codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Point(Protocol):
    """A marked pixel (column x, row y) of the original map and the inverse depth there."""

    @property
    def x(self) -> int: ...  # noqa: D102
    @property
    def y(self) -> int: ...  # noqa: D102
    @property
    def inverse_depth(self) -> float: ...  # noqa: D102


def read_off(decoded_RR: NDArray[np.floating], point: Point, *, height: int, width: int) -> float:
    """The decoded map's value under a pixel of the original height x width map (nearest cell)."""
    rows, columns = decoded_RR.shape
    return float(decoded_RR[point.y * rows // height, point.x * columns // width])


def nearest_is_right(decoded_RR: NDArray[np.floating], points: Sequence[Point], *, height: int, width: int) -> bool:
    """Whether the point that is nearest in truth has the highest value on the decoded map; a tie is wrong."""
    values = [read_off(decoded_RR, point, height=height, width=width) for point in points]
    truth = max(range(len(points)), key=lambda i: points[i].inverse_depth)
    return all(values[truth] > value for i, value in enumerate(values) if i != truth)
