"""``hardblink_new``: HardBLINK's questions about scenes unlike training's (`perceptio_core.scenes.world.UNLIKE`; ours)."""

from pathlib import Path
from typing import Any

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.layouts.hardblink import Test, nearest
from perceptio_core.scenes.world import UNLIKE

_TRIES = 1000  # of these scenes, one in fifty admits five points that no short cut tells apart


def _test(params: RenderParams) -> Test:
    return Test(folder="hardblink_new", per_subset=params.new_scenes, ask=nearest, domain=UNLIKE, tries=_TRIES)


def items(params: RenderParams) -> int:
    """Questions of all subsets."""
    return _test(params).items()


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write a marked picture; its row holds the question, the right answer and the points."""
    return _test(params).make(params, root, number)


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the official jsonl files and the points."""
    _test(params).assemble(root, rows)
