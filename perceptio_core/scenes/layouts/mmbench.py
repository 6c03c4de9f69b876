"""MMBench's layout: one TSV with base64 images and every rotation of the options (circular evaluation).

Rotation r of question k has index k + 1,000,000 r; only r = 0 holds the image, the others the index that does, as in the
official file. Categories and their parents bear MMBench's names.
"""

import base64
import csv
import io
from pathlib import Path
from typing import Any

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes import questions
from perceptio_core.scenes.layouts.scenes import jpeg_bytes, suitable
from perceptio_core.scenes.questions import Maker, as_multiple_choice

COLUMNS = (
    "index",
    "question",
    "hint",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)
ROTATION = 1_000_000
_INSTANCE, _CROSS = "finegrained_perception (instance-level)", "finegrained_perception (cross-instance)"
KINDS: tuple[tuple[str, str, Maker], ...] = (
    ("attribute_recognition", _INSTANCE, questions.color_question),
    ("object_localization", _INSTANCE, questions.part_question),
    ("spatial_relationship", _CROSS, questions.relation_question),
    ("attribute_recognition", _INSTANCE, questions.shape_question),
    ("object_localization", _INSTANCE, questions.count_question),
    ("attribute_comparison", _CROSS, questions.comparison_question),
)


def items(params: RenderParams) -> int:
    """Questions, not rows."""
    return params.mmbench


def make(params: RenderParams, root: Path, number: int) -> dict[str, Any]:
    """A question with its options and picture; nothing is written yet."""
    del root
    category, parent, maker = KINDS[number % len(KINDS)]
    one, question = suitable(params, block="mmbench", number=number, find=lambda it: maker(it.view, it.rng))
    options, place = as_multiple_choice(question, one.rng)
    return {
        "question": question.text,
        "options": options,
        "answer": place,
        "category": category,
        "l2-category": parent,
        "image": base64.b64encode(jpeg_bytes(one.rendering.image)).decode("ascii"),
    }


def assemble(params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``mmbench/mini.tsv``: the questions, then their rotations."""
    del params
    path = root / "mmbench" / "mini.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    for turn in range(max(len(row["options"]) for row in rows)):
        for index, row in enumerate(rows):
            count = len(row["options"])
            if turn < count:
                writer.writerow(_rotated(row, index=index, turn=turn))
    path.write_text(text.getvalue())


def _rotated(row: dict[str, Any], *, index: int, turn: int) -> dict[str, Any]:
    """The row with its options moved on by `turn` places."""
    count = len(row["options"])
    options = {"ABCD"[(place + turn) % count]: option for place, option in enumerate(row["options"])}
    return {
        "index": index + turn * ROTATION,
        "question": row["question"],
        **options,
        "answer": "ABCD"[(row["answer"] + turn) % count],
        "category": row["category"],
        "image": row["image"] if turn == 0 else str(index),
        "l2-category": row["l2-category"],
        "split": "dev",
    }
