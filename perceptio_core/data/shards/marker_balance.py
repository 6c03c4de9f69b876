"""Weights under which what can be seen in the image plane does not tell which of some points is the nearest (ours)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_RAKES, _TOLERANCE, _SETS_PER_RANK = 30, 0.01, 2.0


def balancing_weights(
    sets_MK: NDArray[np.intp],
    levels_P: NDArray[np.float32],
    *,
    cues_P: Sequence[NDArray[np.float32]],
    opposites_P: Sequence[NDArray[np.float32]],
) -> NDArray[np.float64] | None:
    """Weights (M,) under which the nearest point of a set has every rank by every cue equally often.

    They come from raking the pool of sets (generalised iterative scaling, Darroch and Ratcliff 1972: the weights nearest
    to equal ones). Where the picture cannot show some rank, only first against not-first is balanced; where not even that,
    there are none: a question all the same would bias the whole.

    Args:
        sets_MK: M sets of K points.
        levels_P: nearness of each point.
        cues_P: values of each point that a short cut could go by, the greatest first.
        opposites_P: values of which only first against not-first is balanced: what is last by a cue, where its ranks are not.
    """
    if len(sets_MK) == 0:
        return None
    count = sets_MK.shape[1]
    nearest_M1 = levels_P[sets_MK].argmax(axis=1)[:, None]
    ranks_QMK = [_rank_shares(values_P[sets_MK], nearest_M1) for values_P in cues_P]
    first_QM2 = [_first_or_not(shares_MK) for shares_MK in ranks_QMK]
    opposite_QM2 = [_first_or_not(_rank_shares(values_P[sets_MK], nearest_M1)) for values_P in opposites_P]
    finest = [ranks if _occupied(ranks) else first for ranks, first in zip(ranks_QMK, first_QM2, strict=True)]
    weights_M = _rake([*finest, *opposite_QM2], count=count)
    return weights_M if weights_M is not None else _rake([*first_QM2, *opposite_QM2], count=count)


def _first_or_not(shares_MK: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([shares_MK[:, 0], 1.0 - shares_MK[:, 0]], axis=1)


def _occupied(shares_MR: NDArray[np.float64]) -> bool:
    """Whether no rank rests on a single set, which would then be the answer to every question about the picture."""
    return bool((shares_MR.sum(axis=0) >= _SETS_PER_RANK).all())


def _rank_shares(values_MK: NDArray[np.floating], nearest_M1: NDArray[np.intp]) -> NDArray[np.float64]:
    """How likely (M, count) the nearest point has rank 0 (greatest) ... count-1 by these values, ties broken by chance."""
    own_M1 = np.take_along_axis(values_MK, nearest_M1, axis=1)
    above_M1 = (values_MK > own_M1).sum(axis=1, keepdims=True)
    tied_M1 = (values_MK == own_M1).sum(axis=1, keepdims=True)
    ranks_K = np.arange(values_MK.shape[1])
    return np.asarray(((ranks_K >= above_M1) & (ranks_K < above_M1 + tied_M1)) / tied_M1)


def _rake(shares_QMR: list[NDArray[np.float64]], *, count: int) -> NDArray[np.float64] | None:
    """Weights (M,) under which the nearest of `count` points is first by every cue in 1/count, or None when none do.

    A cue has either a column for every rank (equally often, then) or two: first, not first.
    """
    if not all(_occupied(shares_MR) for shares_MR in shares_QMR):
        return None
    weights_M = np.full(len(shares_QMR[0]), 1.0 / len(shares_QMR[0]))
    for _ in range(_RAKES):
        worst = 0.0
        for shares_MR in shares_QMR:
            ranks = shares_MR.shape[1]
            target_R = np.full(ranks, 1.0 / count) if ranks > 2 else np.array([1.0, count - 1.0]) / count
            have_R = weights_M @ shares_MR
            worst = max(worst, float(np.abs(have_R - target_R).max()))
            weights_M *= np.exp(shares_MR @ np.log(target_R / np.maximum(have_R, 1e-12)))
        weights_M /= weights_M.sum()
        if worst < _TOLERANCE:
            return weights_M
    return None
