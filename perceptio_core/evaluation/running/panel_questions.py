"""The questions that the report shows with image, masks, depth and answer: a few of each benchmark, spread over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perceptio_core.data.records import spread
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item
from perceptio_core.evaluation.benchmarks.masks import union


def panel_rows(
    benchmark: str,
    items: Sequence[Item],
    answers: Mapping[str, Answer],
    *,
    correct: Mapping[str, float | None],
    root: Path,
    count: int,
) -> list[dict[str, Any]]:
    """At most `count` rows, evenly spaced, of the items whose image is a file and was readable, and whose answer is public.

    A row has: benchmark, item_id, image (path relative to `root`), question, raw, answer, expected, correct (0..1; for
    masks the IoU), mask and truth (RLE or null; the mask is the union), depth_codes (list or null).
    """
    shown = [
        (item, known)
        for item in items
        if isinstance(item.image, Path) and answers[item.item_id].error is None and (known := correct[item.item_id]) is not None
    ]
    return [_row(benchmark, item, answers[item.item_id], known, root) for item, known in spread(shown, count)]


def _row(benchmark: str, item: Item, answer: Answer, correct: float, root: Path) -> dict[str, Any]:
    assert isinstance(item.image, Path)
    return {
        "benchmark": benchmark,
        "item_id": item.item_id,
        "image": item.image.relative_to(root).as_posix(),
        "question": item.question,
        "raw": answer.raw,
        "answer": answer.text,
        "expected": item.expected,
        "correct": round(correct, 4),
        "mask": dict(union(answer.masks, size=answer.masks[0]["size"])) if answer.masks else None,
        "truth": None if item.truth is None else dict(item.truth),
        "depth_codes": None if answer.depth_codes is None else list(answer.depth_codes),
    }
