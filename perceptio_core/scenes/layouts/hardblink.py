"""HardBLINK's layout: questions, answers and marked images for 3, 4 and 5 points, and the points' image-plane facts.

Ours are ``markers.jsonl``, what the short-cut baselines look at (place, area of the object below, brightness), and the folder
``unmarked``, the same pictures without circles and letters.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perceptio_core.data.shards.markers import Marker, answer, draw_markers, sample_markers
from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.layouts.pictures import TRIES, Scene, suitable, write_png
from perceptio_core.scenes.render import Rendering
from perceptio_core.scenes.world import USUAL, Domain

POINTS = (3, 4, 5)
QUESTION = (
    "Multiple points are circled on the image, labeled by letters beside each circle. Which point is the closest to the camera?"
)
CATEGORY = "count"  # what the official files say


@dataclass(frozen=True, kw_only=True)
class Test:
    """One folder in this layout.

    Attributes:
        folder: below the data root.
        per_subset: questions in each subset.
        ask: the question about the points, and its answer such as "(B)".
        domain: which worlds are drawn.
        blocks: first part of the names of the blocks that its scenes come from.
        tries: scenes that are looked through for one question.
    """

    folder: str
    per_subset: int
    ask: Callable[[list[Marker], np.random.Generator], tuple[str, str]]
    domain: Domain = USUAL
    blocks: str = "hardblink"
    tries: int = TRIES

    def items(self) -> int:
        """Questions of all subsets."""
        return len(POINTS) * self.per_subset

    def make(self, params: RenderParams, root: Path, number: int) -> dict[str, Any]:
        """Write a marked picture; its row holds the question, the right answer and the points."""
        points, local = POINTS[number // self.per_subset], number % self.per_subset

        def find(it: Scene) -> list[Marker] | None:
            return sample_markers(
                1.0 / it.rendering.depth,
                count=points,
                rng=it.rng,
                areas_HW=object_areas(it.rendering),
                image_HW3=it.rendering.image,
            )

        one, markers = suitable(
            params, block=f"{self.blocks}_{points}", number=local, find=find, domain=self.domain, tries=self.tries
        )
        unmarked = Image.fromarray(one.rendering.image)
        name = Path(f"blink{points}pointscenter") / f"{local}.png"
        write_png(root / self.folder / "images" / name, draw_markers(unmarked, markers))
        write_png(root / self.folder / "unmarked" / name, unmarked)
        facts = [_facts(marker, object_areas(one.rendering), one.rendering.image) for marker in markers]
        text, right = self.ask(markers, one.rng)
        return {"question_id": local, "subset": points, "text": text, "answer": right, "points": facts}

    def assemble(self, root: Path, rows: list[dict[str, Any]]) -> None:
        """Write the official jsonl files and the points."""
        folder = root / self.folder
        for points in POINTS:
            subset = [row for row in rows if row["subset"] == points]
            questions = [
                {"question_id": i, "image": f"{i}.png", "text": text, "category": CATEGORY}
                for i, text in ((row["question_id"], row["text"]) for row in subset)
            ]
            answers = [{"question_id": row["question_id"], "text": row["answer"], "category": CATEGORY} for row in subset]
            _write_jsonl(folder / "questions" / f"blink_{points}pointscenter_questions.jsonl", questions)
            _write_jsonl(folder / "answers" / f"blink_{points}pointscenter_answers.jsonl", answers)
        keys = ("question_id", "subset", "points")
        _write_jsonl(folder / "markers.jsonl", [{key: row[key] for key in keys} for row in rows])


def nearest(markers: list[Marker], rng: np.random.Generator) -> tuple[str, str]:
    """The official question."""
    del rng
    return QUESTION, answer(markers)


def _test(params: RenderParams) -> Test:
    return Test(folder="hardblink", per_subset=params.hardblink, ask=nearest)


def items(params: RenderParams) -> int:
    """Questions of all subsets."""
    return _test(params).items()


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write a marked picture; its row holds the question, the right answer and the points."""
    return _test(params).make(params, root, number)


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the official jsonl files and the points."""
    _test(params).assemble(root, rows)


def object_areas(rendering: Rendering) -> np.ndarray:
    """(H, W) pixels of the object, or pillar, under each pixel; 0 on ground, wall and sky, which are no objects."""
    pixels = np.bincount(rendering.instances.ravel())
    pixels[0] = 0
    return np.take(pixels, rendering.instances)


def _facts(marker: Marker, areas_HW: np.ndarray, image_HW3: np.ndarray) -> dict[str, Any]:
    y, x = marker.y, marker.x
    around = image_HW3[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
    return {
        "letter": marker.letter,
        "x": x,
        "y": y,
        "area": int(areas_HW[y, x]),
        "brightness": round(float(around.mean()), 2),
    }


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
