"""The page's section on the data: what was read, what was kept out of training, and what the training drew of it."""

from collections.abc import Mapping
from html import escape
from typing import Any

from perceptio_core.data.records import TASKS


def data_tables(counts: Mapping[str, int], training: Mapping[str, Mapping[str, Any]]) -> str:
    """Records and images by split, what was left out, and each variant's draws by task.

    Args:
        counts: as the stage `sources` writes them.
        training: per variant the metrics of its training, with ``drawn_<task>`` and ``epochs_<task>``.
    """
    kinds = ["images", *(task for task in TASKS if any(f"{split}_{task}" in counts for split in ("train", "val")))]
    rows = []
    for split in ("train", "val"):
        values = [counts.get(f"images_{split}", 0), *(counts.get(f"{split}_{task}", 0) for task in kinds[1:])]
        rows.append((split, [f"{value:,}" for value in values]))
    left_out = (
        f"<p>Kept out of training as test images of a benchmark: {counts.get('held_out_by_id', 0):,} by their COCO id,"
        f" {counts.get('held_out_by_look', 0):,} more by their look. {counts.get('shared_files', 0):,} files are copies of"
        f" another and stand for one image with it. {counts.get('quarantined', 0):,} lines in"
        " <code>quarantine.jsonl</code> name every file and record that was left out, with the reason.</p>"
    )
    drawn_tasks = _drawn_tasks(training)
    drawn = [
        (variant, [_drawn(metrics, task) for task in drawn_tasks])
        for variant, metrics in training.items()
        if any(f"drawn_{task}" in metrics for task in drawn_tasks)
    ]
    html = _table(["records", *(kind.replace("_", " ") for kind in kinds)], rows) + left_out
    if drawn:
        html += "<h3>Samples drawn in training, and how often each came</h3>"
        html += _table(["variant", *(task.replace("_", " ") for task in drawn_tasks)], drawn)
    return html


def _drawn_tasks(training: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tasks that any variant drew, in the order in which they come."""
    names = (name.removeprefix("drawn_") for metrics in training.values() for name in metrics if name.startswith("drawn_"))
    return list(dict.fromkeys(names))


def _drawn(metrics: Mapping[str, Any], task: str) -> str:
    if f"drawn_{task}" not in metrics:
        return "none"
    return f"{metrics[f'drawn_{task}']:,} ({metrics[f'epochs_{task}']:.2f} epochs)"


def _table(heads: list[str], rows: list[tuple[str, list[str]]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for name, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
