"""Reading of the curves that a training has written. It brings nothing that trains, for the report and the driver read them."""

import csv
from collections.abc import Sequence
from pathlib import Path

Curve = tuple[Sequence[int], Sequence[float]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """All curves below a DVCLive folder, as {"train/total": (steps, values), ...}."""
    metrics = folder / "plots" / "metrics"
    return {path.relative_to(metrics).with_suffix("").as_posix(): read_curve(path) for path in sorted(metrics.rglob("*.tsv"))}


def read_curve(path: Path) -> tuple[list[int], list[float]]:
    """Steps and values of one curve file (non-finite values included as floats)."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return [int(row["step"]) for row in rows], [float(row[path.stem]) for row in rows]
