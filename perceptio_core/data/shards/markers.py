"""Depth-order questions in the manner of HardBLINK: circled, lettered points, one of them nearest to the camera.

The rules for the points are AURORA's (arXiv 2412.03548): at mid-height, at least 20 pixels (of a 336 pixel image) and
20 of 255 grey levels of the normalised inverse depth apart. Ours are two more. Inside the drawn circle the depth is even, and
no edge runs through it. And the image plane must not give the answer away: of many sets of points one is drawn with the weights
of `marker_balance`. Under these the lowest marker is the nearest once in `count` questions, and so are the one on the biggest
object, the one on the smallest, the brightest and the darkest, however strongly height, size or brightness go with depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perceptio_core.data.shards.marker_balance import balancing_weights
from perceptio_core.data.shards.marker_drawing import MarkerStyle, draw_markers, marker_style

__all__ = [
    "COMPARISON",
    "LETTERS",
    "QUESTION",
    "Marker",
    "MarkerStyle",
    "answer",
    "comparisons",
    "draw_markers",
    "marker_style",
    "sample_markers",
    "sample_questions",
]

QUESTION = (
    "Multiple points are circled on the image, labeled by letters beside each circle. Which point is the closest to the camera?"
)
"""The official HardBLINK question, word for word."""
COMPARISON = "Which point is closer to the camera, {} or {}?"
"""A question about two of the points (ours): it teaches to read depth at a marker; the official one asks for a maximum."""

LETTERS = "ABCDE"
BAND = (0.3, 0.7)
"""Points lie between these fractions of the image height."""
MIN_LEVELS = 20.0
"""Smallest distance between two points in grey levels (of 255) of the normalised inverse depth."""
MIN_DISTANCE = 20.0 / 336.0
"""Smallest distance between two points in the image plane, as a fraction of the shorter side."""

_CURVATURE_LEVELS = 4.0  # a step of more grey levels than this inside the window is an edge
_WINDOW_LEVELS = 16.0  # and the window as a whole stays below MIN_LEVELS, or its depth is not one depth
_WORKING_SIDE = 320  # longer images are searched on a grid of this size: the search costs the same for any photograph
_GROUND_WEIGHT = 0.2
"""How often a point on no object is drawn, compared with others: the nearest point hardly ever is such a one, so that many of
them would leave few to guess among."""
_POINTS, _SETS, _TRIES = 192, 1024, 6  # points drawn from an image, sets drawn from the points, tries for each next point


@dataclass(frozen=True, kw_only=True)
class Marker:
    """One circled point: letter, pixel position (column x, row y) and inverse depth there (near = high)."""

    letter: str
    x: int
    y: int
    inverse_depth: float


def answer(markers: Sequence[Marker]) -> str:
    """The right answer in HardBLINK's form, such as "(A)": the letter of the nearest point."""
    return f"({max(markers, key=lambda marker: marker.inverse_depth).letter})"


def comparisons(markers: Sequence[Marker], *, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions about `count` random pairs of the points (fewer where there are fewer pairs), and their answers, as "(A)"."""
    pairs = list(itertools.combinations(markers, 2))
    chosen = [pairs[int(i)] for i in rng.permutation(len(pairs))[:count]]
    turned = [pair[::-1] if rng.random() < 0.5 else pair for pair in chosen]
    return [(COMPARISON.format(one.letter, two.letter), answer((one, two))) for one, two in turned]


def sample_markers(
    inverse_depth_HW: NDArray[np.floating],
    *,
    count: int,
    rng: np.random.Generator,
    areas_HW: NDArray[np.number] | None = None,
    image_HW3: NDArray[np.uint8] | None = None,
) -> list[Marker] | None:
    """Choose `count` (2-5) points for one question, or None when the image admits no balanced set.

    `inverse_depth_HW` in any unit, near = high. `areas_HW` holds the pixel area of the object under each pixel, 0 where there
    is none, and `image_HW3` the picture (0-255); without them the short cuts by size or brightness are left as the picture
    has them. The list is in the order of the letters; which point has which letter is random. Raises ValueError for a count
    outside 2-5, shapes that differ, or values that are not finite.
    """
    questions = sample_questions(inverse_depth_HW, count=count, questions=1, rng=rng, areas_HW=areas_HW, image_HW3=image_HW3)
    return questions[0] if questions else None


def sample_questions(
    inverse_depth_HW: NDArray[np.floating],
    *,
    count: int,
    questions: int,
    rng: np.random.Generator,
    areas_HW: NDArray[np.number] | None = None,
    image_HW3: NDArray[np.uint8] | None = None,
) -> list[list[Marker]]:
    """The points of up to `questions` different questions about one image, for little more than the cost of one.

    Arguments and errors as of `sample_markers`. The list is empty when the image admits no balanced set.
    """
    if not 2 <= count <= len(LETTERS):
        raise ValueError(f"sample_markers: count is {count}, allowed are 2 to {len(LETTERS)}")
    for name, other in (("areas_HW", areas_HW), ("image_HW3", image_HW3)):
        if other is not None and other.shape[:2] != inverse_depth_HW.shape:
            raise ValueError(f"sample_markers: {name} has shape {other.shape}, inverse_depth_HW {inverse_depth_HW.shape}")
    height, width = inverse_depth_HW.shape
    step = max(1, round(max(height, width) / _WORKING_SIDE))
    depth_HW = np.asarray(inverse_depth_HW[::step, ::step], np.float32)
    low, high = float(depth_HW.min()), float(depth_HW.max())
    if not np.isfinite(low + high):
        raise ValueError("sample_markers: inverse_depth_HW holds values that are not finite")
    if high <= low:
        return []
    levels_HW = (depth_HW - low) * (255.0 / (high - low))

    style = marker_style(min(height, width))
    rows_C, columns_C = _candidates(levels_HW, height=height, step=step, style=style)
    if len(rows_C) < count:
        return []
    weights_C = np.ones(len(rows_C))
    if areas_HW is not None:
        weights_C[areas_HW[rows_C * step, columns_C * step] == 0] = _GROUND_WEIGHT
    points_P = _draw_points(levels_HW[rows_C, columns_C], weights_C, rng=rng)
    rows_P, columns_P = rows_C[points_P], columns_C[points_P]
    levels_P = levels_HW[rows_P, columns_P]
    cues_P: list[NDArray[np.float32]] = [rows_P.astype(np.float32)]
    opposites_P: list[NDArray[np.float32]] = []
    if areas_HW is not None:
        area_P = areas_HW[rows_P * step, columns_P * step].astype(np.float32)
        cues_P.append(area_P)
        # The nearest point is hardly ever on the ground, so who looks for a small object leaves the ground aside.
        opposites_P.append(np.where(area_P > 0, -area_P, -np.inf))
    if image_HW3 is not None:
        brightness_P = _brightness(image_HW3, rows_P * step, columns_P * step)
        cues_P.append(brightness_P)
        opposites_P.append(-brightness_P)

    reach = max(MIN_DISTANCE * min(height, width), 1.0)
    near_PP = _too_near(levels_P, rows_P * step, columns_P * step, reach=reach, style=style)
    sets_MK = _draw_sets(near_PP, count=count, rng=rng)
    weights_M = balancing_weights(sets_MK, levels_P, cues_P=cues_P, opposites_P=opposites_P)
    if weights_M is None:
        return []
    drawn = np.unique(rng.choice(len(sets_MK), size=questions, p=weights_M))
    return [
        [
            Marker(
                letter=letter,
                x=int(columns_P[point] * step),
                y=int(rows_P[point] * step),
                inverse_depth=float(depth_HW[rows_P[point], columns_P[point]]),
            )
            for letter, point in zip(LETTERS[:count], rng.permutation(sets_MK[number]), strict=True)
        ]
        for number in drawn
    ]


def _candidates(
    levels_HW: NDArray[np.float32], *, height: int, step: int, style: MarkerStyle
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns (working grid) at mid-height where the depth is flat or evenly sloped as far as the circle reaches."""
    reach = max(1, round(style.radius / step))
    top, bottom = int(np.ceil(BAND[0] * height / step)), int(BAND[1] * height / step)
    side = max(style.width // (2 * step) + 1, reach)
    left, right = side, levels_HW.shape[1] - side
    top, bottom = max(top, reach), min(bottom, levels_HW.shape[0] - reach)
    if bottom <= top or right <= left:
        return np.empty(0, np.intp), np.empty(0, np.intp)

    def shifted(down: int, along: int) -> NDArray[np.float32]:
        return levels_HW[top + down : bottom + down, left + along : right + along]

    centre = shifted(0, 0)
    flat = np.ones(centre.shape, bool)
    for distance in range(1, reach + 1):
        for down, along in ((0, 1), (1, 0), (1, 1), (1, -1)):
            one, two = shifted(distance * down, distance * along), shifted(-distance * down, -distance * along)
            flat &= np.abs(one + two - 2.0 * centre) <= _CURVATURE_LEVELS
            flat &= np.abs(one - two) <= _WINDOW_LEVELS
    rows, columns = np.nonzero(flat)
    return rows + top, columns + left


def _brightness(image_HW3: NDArray[np.uint8], rows_P: NDArray[np.intp], columns_P: NDArray[np.intp]) -> NDArray[np.float32]:
    """Mean of the channels in a 3 x 3 window around each pixel, 0-255."""
    height, width = image_HW3.shape[:2]
    window = np.array([-1, 0, 1])
    rows_P31 = np.clip(rows_P[:, None] + window, 0, height - 1)[:, :, None]
    columns_P13 = np.clip(columns_P[:, None] + window, 0, width - 1)[:, None, :]
    return np.asarray(image_HW3[rows_P31, columns_P13].mean(axis=(1, 2, 3)), np.float32)


def _draw_points(
    levels_C: NDArray[np.float32], weights_C: NDArray[np.float64], *, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Up to _POINTS candidate indices, by weight, and less likely the more there are of a grey-level bin: a wide far ground
    must not crowd out the rest.
    """
    bins_C = (levels_C * (16 / 256.0)).astype(np.intp)
    cumulative_C = np.cumsum(weights_C / np.bincount(bins_C, minlength=16)[bins_C])
    drawn = np.searchsorted(cumulative_C, rng.random(_POINTS) * cumulative_C[-1], side="right")
    return np.unique(np.minimum(drawn, len(levels_C) - 1))


def _too_near(
    levels_P: NDArray[np.float32],
    rows_P: NDArray[np.intp],
    columns_P: NDArray[np.intp],
    *,
    reach: float,
    style: MarkerStyle,
) -> NDArray[np.bool_]:
    """Pairs (P, P) that may not stand in one question: too close in depth or in the image, or drawn over one another."""
    levels_PP = np.abs(levels_P[:, None] - levels_P[None])
    down_PP = np.abs(np.subtract.outer(rows_P, rows_P, dtype=np.int32))
    along_PP = np.abs(np.subtract.outer(columns_P, columns_P, dtype=np.int32))
    covered_PP = (along_PP < style.width) & (down_PP < style.height)
    # Two markers in one row have no "lowest", so the height short cut could not be balanced with them.
    close_PP = (levels_PP < MIN_LEVELS) | (down_PP**2 + along_PP**2 < reach**2)
    return np.asarray(close_PP | covered_PP | (down_PP == 0))


def _draw_sets(near_PP: NDArray[np.bool_], *, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Random sets (M, count) of points of which no two are too near; M <= _SETS."""
    sets_MK = rng.integers(len(near_PP), size=(_SETS, 1))
    for _ in range(count - 1):
        tries_MT = rng.integers(len(near_PP), size=(len(sets_MK), _TRIES))
        refused_MT = near_PP[sets_MK[:, 0, None], tries_MT]
        for earlier_M in sets_MK.T[1:]:
            refused_MT |= near_PP[earlier_M[:, None], tries_MT]
        next_M = tries_MT[np.arange(len(tries_MT)), refused_MT.argmin(axis=1)]
        sets_MK = np.concatenate([sets_MK, next_M[:, None]], axis=1)[~refused_MT.all(axis=1)]
    return sets_MK
