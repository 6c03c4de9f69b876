"""Answers as lines of JSON: what the runner keeps, the predictions files hold, and the scorer reads again."""

from __future__ import annotations

from typing import Any

from perceptio_core.evaluation.benchmarks.benchmark import Answer


def to_row(answer: Answer) -> dict[str, Any]:
    """An answer as plain JSON values."""
    return {
        "item_id": answer.item_id,
        "raw": answer.raw,
        "text": answer.text,
        "masks": [dict(mask) for mask in answer.masks],
        "depth_codes": None if answer.depth_codes is None else list(answer.depth_codes),
        "passes": answer.passes,
        "error": answer.error,
    }


def from_row(row: dict[str, Any]) -> Answer:
    """The answer that `to_row` wrote; further keys are left aside."""
    codes = row["depth_codes"]
    return Answer(
        item_id=row["item_id"],
        raw=row["raw"],
        text=row["text"],
        masks=tuple(row["masks"]),
        depth_codes=None if codes is None else tuple(codes),
        passes=row.get("passes"),
        error=row["error"],
    )
