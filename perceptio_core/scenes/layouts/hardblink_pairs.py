"""``hardblink_pairs``: in HardBLINK's layout, and about two of the 3, 4 or 5 points: which one is closer (ours).

The same words as the comparisons that training knows (`perceptio_core.data.shards.markers.comparisons`). Chance is a half,
for the two letters are named.
"""

from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.shards.markers import Marker, comparisons
from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.layouts.hardblink import Test


def _pair(markers: list[Marker], rng: np.random.Generator) -> tuple[str, str]:
    return comparisons(markers, count=1, rng=rng)[0]


def _test(params: RenderParams) -> Test:
    return Test(folder="hardblink_pairs", per_subset=params.pairs, ask=_pair, blocks="hardblink_pairs")


def items(params: RenderParams) -> int:
    """Questions of all subsets."""
    return _test(params).items()


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write a marked picture; its row holds the question, the right answer and the points."""
    return _test(params).make(params, root, number)


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the official jsonl files and the points."""
    _test(params).assemble(root, rows)
