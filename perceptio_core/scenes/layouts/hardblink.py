"""HardBLINK's layout: questions, answers and marked images for 3, 4 and 5 points, and the points' image-plane facts.

``markers.jsonl`` is ours: what the short-cut baselines look at (place, area of the object below, brightness).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perceptio_core.data.markers import Marker, answer, draw_markers, sample_markers
from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.layouts.pictures import Scene, suitable, write_png
from perceptio_core.scenes.render import Rendering

POINTS = (3, 4, 5)
QUESTION = (
    "Multiple points are circled on the image, labeled by letters beside each circle. Which point is the closest to the camera?"
)
CATEGORY = "count"  # what the official files say


def items(params: RenderParams) -> int:
    """Questions of all subsets."""
    return len(POINTS) * params.hardblink


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write a marked picture; its row holds the right answer and the points."""
    points, local = POINTS[number // params.hardblink], number % params.hardblink

    def find(it: Scene) -> list[Marker] | None:
        return sample_markers(
            1.0 / it.rendering.depth,
            count=points,
            rng=it.rng,
            areas_HW=object_areas(it.rendering),
            image_HW3=it.rendering.image,
        )

    one, markers = suitable(params, block=f"hardblink_{points}", number=local, find=find)
    marked = draw_markers(Image.fromarray(one.rendering.image), markers)
    write_png(root / "hardblink" / "images" / f"blink{points}pointscenter" / f"{local}.png", marked)
    facts = [_facts(marker, object_areas(one.rendering), one.rendering.image) for marker in markers]
    return {"question_id": local, "subset": points, "answer": answer(markers), "points": facts}


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Write the official jsonl files and the points."""
    del params
    folder = root / "hardblink"
    for points in POINTS:
        subset = [row for row in rows if row["subset"] == points]
        questions = [
            {"question_id": i, "image": f"{i}.png", "text": QUESTION, "category": CATEGORY}
            for i in (row["question_id"] for row in subset)
        ]
        answers = [{"question_id": row["question_id"], "text": row["answer"], "category": CATEGORY} for row in subset]
        _write_jsonl(folder / "questions" / f"blink_{points}pointscenter_questions.jsonl", questions)
        _write_jsonl(folder / "answers" / f"blink_{points}pointscenter_answers.jsonl", answers)
    keys = ("question_id", "subset", "points")
    _write_jsonl(folder / "markers.jsonl", [{key: row[key] for key in keys} for row in rows])


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
