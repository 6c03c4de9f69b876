"""The page's tables on the data: what was read, what was kept out of training, and what the training drew of it."""

from collections.abc import Mapping
from typing import Any

from perceptio_core.report.tables import Table

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


def images_table(counts: Mapping[str, float]) -> Table:
    """Images by split, as the stage `sources` counted them."""
    return Table(
        caption="Images",
        heads=["split", "images"],
        rows=[[split, f"{counts.get(f'images_{split}', 0):,}"] for split in ("train", "val")],
    )


def samples_table(realised: Realised) -> Table:
    """A row per split, task and data set; the reasons that no record was dropped for have no column."""
    found = [
        (f"{split}, {task.replace('_', ' ')}, {source}", numbers)
        for split, tasks in realised.items()
        for task, sources in tasks.items()
        for source, numbers in sources.items()
    ]
    reasons = [reason for reason in DROPPED if any(reason in numbers["dropped"] for _, numbers in found)]
    return Table(
        caption="Samples, records, and records dropped",
        heads=["split, task, data set", "samples", "records in them", *(f"dropped: {DROPPED[reason]}" for reason in reasons)],
        rows=[
            [
                name,
                *(f"{numbers[key]:,}" for key in ("samples", "records")),
                *(f"{numbers['dropped'].get(reason, 0):,}" for reason in reasons),
            ]
            for name, numbers in found
        ],
    )


def drawn_table(training: Mapping[str, Mapping[str, float]]) -> Table:
    """What each variant drew in training, by task; empty where no variant says so.

    Args:
        training: per variant the metrics of its training by name, with ``drawn_<task>`` and what goes with it.
    """
    names = (name.removeprefix("drawn_") for metrics in training.values() for name in metrics if name.startswith("drawn_"))
    tasks = list(dict.fromkeys(names))
    return Table(
        caption="Samples drawn in training: their share of all (the share wanted), and how often each came",
        heads=["variant", *(task.replace("_", " ") for task in tasks)],
        rows=[
            [variant, *(_drawn(metrics, task) for task in tasks)]
            for variant, metrics in training.items()
            if any(f"drawn_{task}" in metrics for task in tasks)
        ],
    )


def _drawn(metrics: Mapping[str, float], task: str) -> str:
    if f"drawn_{task}" not in metrics:
        return "none"
    share, wanted = (100 * metrics[f"{name}_{task}"] for name in ("share", "wanted_share"))
    return f"{metrics[f'drawn_{task}']:,.0f}: {share:.1f} % ({wanted:.1f} %), {metrics[f'epochs_{task}']:.2f} epochs"
