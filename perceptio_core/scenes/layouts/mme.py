"""MME's layout: ``questions/<task>.txt`` with two lines a picture, and ``images/<task>/``.

The subtasks are those of MME's that fit the world, see `perceptio_core.scenes.claims`.
"""

from pathlib import Path
from typing import Any

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.claims import TOPICS, claims
from perceptio_core.scenes.layouts.scenes import suitable, write_jpeg


def items(params: RenderParams) -> int:
    """Pictures of all subtasks."""
    return len(TOPICS) * params.mme


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write a picture; its row holds the question that is true and the one that is false."""
    task, local = TOPICS[number // params.mme], number % params.mme
    one, pair = suitable(params, block=f"mme_{task}", number=local, find=lambda it: claims(task, it.view, it.rng))
    name = f"{local:012d}.jpg"
    write_jpeg(root / "mme" / "images" / task / name, one.rendering.image)
    lines = [f"{name}\t{claim.text}\t{claim.answer}\n" for claim in pair]
    return {"task": task, "lines": lines}


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Write a text file for each subtask."""
    del params
    folder = root / "mme" / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    for task in TOPICS:
        (folder / f"{task}.txt").write_text("".join(line for row in rows if row["task"] == task for line in row["lines"]))
