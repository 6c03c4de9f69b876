"""The page's section on the data: what was read, what was kept out of training, and what the training drew of it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

DROPPED = {
    "held_out_by_id": "test images, by id",
    "held_out_by_look": "test images, by look",
    "among_val": "also a val image",
    "over_limit": "over the limit",
    "over_image_limit": "over the limit of an image",
    "quarantined": "in quarantine",
}
"""Why records are dropped, as the page says it."""

Realised = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
"""Per split, task and data set what ``data`` in the index of the joint shards says."""


def data_tables(counts: Mapping[str, Any], realised: Realised, training: Mapping[str, Mapping[str, Any]]) -> str:
    """Images by split, samples and records by task and data set, what was dropped and why, and each variant's draws by task.

    Args:
        counts: as the stage `sources` writes them.
        realised: of the stage `joint_shards`.
        training: per variant the metrics of its training, with ``drawn_<task>`` and what goes with it.
    """
    images = [(split, [f"{counts.get(f'images_{split}', 0):,}"]) for split in ("train", "val")]
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
    html = _table(["", "images"], images) + _realised(realised) + left_out
    if drawn:
        html += "<h3>Samples drawn in training: their share of all (the share wanted), and how often each came</h3>"
        html += _table(["variant", *(task.replace("_", " ") for task in drawn_tasks)], drawn)
    return html


def _realised(realised: Realised) -> str:
    """A row per split, task and data set; the reasons that no record was dropped for have no column."""
    rows = [
        (f"{split}, {task.replace('_', ' ')}, {source}", numbers)
        for split, tasks in realised.items()
        for task, sources in tasks.items()
        for source, numbers in sources.items()
    ]
    reasons = [reason for reason in DROPPED if any(reason in numbers["dropped"] for _, numbers in rows)]
    cells = [
        (name, [f"{number:,}" for number in (numbers["samples"], numbers["records"], *_dropped(numbers, reasons))])
        for name, numbers in rows
    ]
    heads = ["", "samples", "records in them", *(f"dropped: {DROPPED[reason]}" for reason in reasons)]
    return "<h3>Samples, records, and records dropped</h3>" + _table(heads, cells)


def _dropped(numbers: Mapping[str, Any], reasons: Sequence[str]) -> list[int]:
    return [numbers["dropped"].get(reason, 0) for reason in reasons]


def _drawn_tasks(training: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tasks that any variant drew, in the order in which they come."""
    names = (name.removeprefix("drawn_") for metrics in training.values() for name in metrics if name.startswith("drawn_"))
    return list(dict.fromkeys(names))


def _drawn(metrics: Mapping[str, Any], task: str) -> str:
    if f"drawn_{task}" not in metrics:
        return "none"
    share, wanted = (100 * metrics[f"{name}_{task}"] for name in ("share", "wanted_share"))
    return f"{metrics[f'drawn_{task}']:,}: {share:.1f} % ({wanted:.1f} %), {metrics[f'epochs_{task}']:.2f} epochs"


def _table(heads: list[str], rows: list[tuple[str, list[str]]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for name, cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
