"""A measured number with its interval, its chance level and its protocol; and ``metrics.json``, a list of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number.

    Attributes:
        name: such as `res_ciou`; metrics of a variant other than `full` carry its name in front (`control_mmbench`).
        value: fractions are percentages.
        low, high: 95 % interval, or None where there is none.
        n: number of samples behind it, None where that has no meaning.
        chance: what answers at random among those allowed get, None where nothing can be guessed (a mask, a free answer).
        protocol: how it was measured, in words.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    chance: float | None = None
    protocol: str

    def to_json(self) -> dict[str, Any]:
        """The metric as it stands in metrics.json, its numbers to six digits."""
        return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in asdict(self).items()}


def counted(counts: Mapping[str, float]) -> list[Metric]:
    """Metrics of what was counted, with nothing to estimate and nothing to guess."""
    return [Metric(name=name, value=value, protocol="counted") for name, value in counts.items()]


def read_metrics(path: Path) -> list[Metric]:
    """Read a metrics.json.

    Raises:
        ValueError: another form, or a value that is not a finite number; names the file and the entry.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of metrics, got {type(rows).__name__}")
    return [_metric(row, where=f"{path}: metric {index}") for index, row in enumerate(rows)]


def write_metrics(folder: Path, metrics: Sequence[Metric]) -> None:
    """Write ``metrics.json`` (a list), and ``summary.json`` ({name: value}, which `dvc metrics` reads).

    Raises:
        ValueError: a number is not finite.
    """
    rows = [metric.to_json() for metric in metrics]
    for name, content in (("metrics.json", rows), ("summary.json", {row["name"]: row["value"] for row in rows})):
        (folder / name).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of the share `hits` / `n`, in percent; a sum of parts of hits may be a fraction."""
    z, share = 1.959964, hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = (round(100 * bound, 9) for bound in (middle - reach, middle + reach))  # 0 of n is 0, not 3e-15
    return max(0.0, low), min(100.0, high)


def _metric(row: Any, *, where: str) -> Metric:
    if not isinstance(row, dict) or row.keys() != Metric.__dataclass_fields__.keys():
        raise ValueError(f"{where}: expected an object with the keys {sorted(Metric.__dataclass_fields__)}, got {row!r}")
    if not isinstance(row["value"], int | float) or not math.isfinite(row["value"]):
        raise ValueError(f"{where} ({row['name']}): value must be a finite number, got {row['value']!r}")
    return Metric(**row)
