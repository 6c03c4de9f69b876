"""The headline figures of a run: what the stages measured, under the names that every profile shares."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAIN = "full"
"""The variant that a report is about."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number.

    Attributes:
        name: such as `res_ciou`; figures of a variant other than `full` carry its name in front (`control_mmbench`).
        value: fractions are percentages.
        low, high: 95 % interval, or None where there is none.
        n: number of samples behind it, None where that has no meaning.
        protocol: how it was measured, in words.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    protocol: str


def read_figures(path: Path) -> list[Figure]:
    """Read a list of {name, value, low, high, n, protocol}.

    Raises:
        ValueError: another form, or a value that is not a finite number; names the file and the entry.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of metrics, got {type(rows).__name__}")
    return [_figure(row, where=f"{path}: metric {index}") for index, row in enumerate(rows)]


def gather(*, codebook: Path, evaluations: Mapping[str, Path]) -> list[Figure]:
    """All headline figures: the codebook's, then each variant's.

    Args:
        codebook: metrics of the depth codebook.
        evaluations: variant -> its metrics; the figures of `full` keep their names, the others' get `<variant>_` in front.

    Raises:
        ValueError: a file of another form, or a name twice.
    """
    figures = read_figures(codebook)
    for variant, path in evaluations.items():
        prefix = "" if variant == MAIN else f"{variant}_"
        figures += [Figure(**{**asdict(figure), "name": prefix + figure.name}) for figure in read_figures(path)]
    names = [figure.name for figure in figures]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"metrics measured twice: {', '.join(doubled)}")
    return figures


def write_figures(*, figures: Sequence[Figure], folder: Path) -> None:
    """Write `metrics.json` (list) and `summary.json` ({name: value}, for `dvc metrics`)."""
    rows = [asdict(figure) for figure in figures]
    (folder / "metrics.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    flat = {figure.name: figure.value for figure in figures}
    (folder / "summary.json").write_text(json.dumps(flat, indent=2) + "\n", encoding="utf-8")


def _figure(row: Any, *, where: str) -> Figure:
    keys = {"name", "value", "low", "high", "n", "protocol"}
    if not isinstance(row, dict) or row.keys() != keys:
        raise ValueError(f"{where}: expected an object with the keys {sorted(keys)}, got {row!r}")
    if not isinstance(row["value"], int | float) or not math.isfinite(row["value"]):
        raise ValueError(f"{where} ({row['name']}): value must be a finite number, got {row['value']!r}")
    return Figure(**row)
