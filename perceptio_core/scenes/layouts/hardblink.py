"""HardBLINK's layout: questions, answers and marked images for 3, 4 and 5 points, and the points' image-plane facts.

So are two tests of ours: `NEW`, the same questions about scenes unlike training's, and `PAIRS`, which of two points is closer.
Ours are ``markers.jsonl``, what the short-cut baselines look at (place, area of the object below, brightness), and the
folder ``unmarked``, the same pictures without circles and letters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perceptio_core.data.shards.markers import Marker, answer, comparisons, draw_markers, sample_markers
from perceptio_core.jsonl import write_jsonl
from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.layouts.scenes import TRIES, Scene, suitable, write_png
from perceptio_core.scenes.render import Rendering
from perceptio_core.scenes.world import UNLIKE, USUAL, Domain

POINTS = (3, 4, 5)
QUESTION = (
    "Multiple points are circled on the image, labeled by letters beside each circle. Which point is the closest to the camera?"
)
CATEGORY = "count"  # what the official files say


@dataclass(frozen=True, kw_only=True)
class HardBlink:
    """One folder in this layout.

    Attributes:
        folder: below the data root.
        per_subset: gives the questions in each subset.
        ask: the question about the points, and its answer such as "(B)".
        domain: which worlds are drawn.
        blocks: first part of the names of the blocks that its scenes come from.
        tries: scenes that are looked through for one question.
    """

    folder: str
    per_subset: Callable[[RenderParams], int]
    ask: Callable[[list[Marker], np.random.Generator], tuple[str, str]]
    domain: Domain = USUAL
    blocks: str = "hardblink"
    tries: int = TRIES

    def items(self, params: RenderParams) -> int:
        """Questions of all subsets."""
        return len(POINTS) * self.per_subset(params)

    def make(self, params: RenderParams, root: Path, number: int) -> dict[str, Any]:
        """Write a marked picture; its row holds the question, the right answer and the points."""
        size = self.per_subset(params)
        points, local = POINTS[number // size], number % size

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

    def assemble(self, params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
        """Write the official jsonl files and the points."""
        del params
        folder = root / self.folder
        for name in ("questions", "answers"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for points in POINTS:
            subset = [row for row in rows if row["subset"] == points]
            questions = [
                {"question_id": i, "image": f"{i}.png", "text": text, "category": CATEGORY}
                for i, text in ((row["question_id"], row["text"]) for row in subset)
            ]
            answers = [{"question_id": row["question_id"], "text": row["answer"], "category": CATEGORY} for row in subset]
            write_jsonl(folder / "questions" / f"blink_{points}pointscenter_questions.jsonl", questions)
            write_jsonl(folder / "answers" / f"blink_{points}pointscenter_answers.jsonl", answers)
        keys = ("question_id", "subset", "points")
        write_jsonl(folder / "markers.jsonl", [{key: row[key] for key in keys} for row in rows])


def nearest(markers: list[Marker], rng: np.random.Generator) -> tuple[str, str]:
    """The official question."""
    del rng
    return QUESTION, answer(markers)


def pair(markers: list[Marker], rng: np.random.Generator) -> tuple[str, str]:
    """Which of two points is closer, in the words that training knows; chance is a half, for both letters are named."""
    return comparisons(markers, count=1, rng=rng)[0]


HARDBLINK = HardBlink(folder="hardblink", per_subset=attrgetter("hardblink"), ask=nearest)
NEW = HardBlink(  # of these scenes, one in fifty admits five points that no short cut tells apart
    folder="hardblink_new", per_subset=attrgetter("new_scenes"), ask=nearest, domain=UNLIKE, tries=1000
)
PAIRS = HardBlink(folder="hardblink_pairs", per_subset=attrgetter("pairs"), ask=pair, blocks="hardblink_pairs")


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
