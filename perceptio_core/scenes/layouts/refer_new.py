"""``refcoco_new``: a REFER test split on scenes unlike training's (`perceptio_core.scenes.world.UNLIKE`; ours)."""

from pathlib import Path
from typing import Any

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.layouts.refer import make_scene, write_references
from perceptio_core.scenes.world import UNLIKE

FOLDER = "refcoco_new"


def items(params: RenderParams) -> int:
    """Scenes, all of them of the split test."""
    return params.new_scenes


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write the picture of a scene; its row holds annotations and referred objects with sentences."""
    return make_scene(params, root / FOLDER, split="test", number=number, domain=UNLIKE)


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Number annotations, refs and sentences through, and write REFER's two files."""
    write_references(params, root / FOLDER, rows)
