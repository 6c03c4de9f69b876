"""What the driver shows of finished work: the report's headline figures, and a stage's metrics."""

import json
from pathlib import Path
from typing import Any

from stages.common import StagePaths


def headline(profile: str) -> str:
    """The report's figures as a table of plain text, and where the report is."""
    report = StagePaths(profile).out("report")
    rows = [("metric", "value", "95 % interval", "n")]
    for metric in json.loads((report / "metrics.json").read_text(encoding="utf-8")):
        known = metric["low"] is not None and metric["high"] is not None
        interval = f"{metric['low']:.1f} .. {metric['high']:.1f}" if known else ""
        count = "" if metric["n"] is None else str(metric["n"])
        rows.append((metric["name"], f"{metric['value']:.4g}", interval, count))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, "", f"report: {(report / 'report.html').absolute()}"])


def metrics_of(folder: Path) -> dict[str, float]:
    """The numbers of an output by name: ``summary.json`` or else ``metrics.json``, nested keys joined by dots.

    A list of figures, as `headline` reads it, counts as {name: value}; texts and anything else are left out.
    """
    file = next((folder / name for name in ("summary.json", "metrics.json") if (folder / name).is_file()), None)
    if file is None:
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(content, list):
        content = {figure["name"]: figure["value"] for figure in content}
    return dict(_numbers(content, ""))


def _numbers(value: Any, name: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _numbers(inner, f"{name}.{key}" if name else str(key))]
    return [(name, value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
