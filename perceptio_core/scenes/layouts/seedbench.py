"""SEED-Bench's layout: ``SEED-Bench.json`` and the folder ``SEED-Bench-image`` that `data_id` names files of.

Question types are those of SEED-Bench's nine for images that fit the world, under their own names and numbers.
"""

import json
from pathlib import Path
from typing import Any

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes import questions
from perceptio_core.scenes.layouts.scenes import suitable, write_jpeg
from perceptio_core.scenes.questions import Maker, as_multiple_choice

QUESTION_TYPES = {
    "Scene Understanding": 1,
    "Instance Identity": 2,
    "Instance Attributes": 3,
    "Instance Location": 4,
    "Instances Counting": 5,
    "Spatial Relation": 6,
    "Instance Interaction": 7,
    "Visual Reasoning": 8,
    "Text Understanding": 9,
}
KINDS: tuple[tuple[str, tuple[Maker, ...]], ...] = (
    ("Instance Identity", (questions.identity_question, questions.shape_question)),
    ("Instance Attributes", (questions.color_question,)),
    ("Instance Location", (questions.part_question,)),
    ("Instances Counting", (questions.count_question,)),
    ("Spatial Relation", (questions.relation_question,)),
)


def items(params: RenderParams) -> int:
    """Questions."""
    return params.seedbench


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """Write a picture; its row is the official one. All questions have four options."""
    kind, makers = KINDS[number % len(KINDS)]
    maker = makers[number // len(KINDS) % len(makers)]
    one, question = suitable(params, block="seedbench", number=number, find=lambda it: maker(it.view, it.rng))
    options, place = as_multiple_choice(question, one.rng)
    data_id = f"{number:012d}.jpg"
    write_jpeg(root / "seedbench" / "SEED-Bench-image" / data_id, one.rendering.image)
    return {
        "answer": "ABCD"[place],
        **{f"choice_{letter}": option for letter, option in zip("abcd", options, strict=False)},
        "data_id": data_id,
        "data_type": "image",
        "question": question.text,
        "question_id": str(number),
        "question_type_id": QUESTION_TYPES[kind],
        "segment": [],
    }


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``seedbench/SEED-Bench.json``."""
    del params
    (root / "seedbench" / "SEED-Bench.json").write_text(
        json.dumps({"questions": rows, "question_type": QUESTION_TYPES}, indent=1)
    )
