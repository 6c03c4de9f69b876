"""What the driver shows of finished work: the report's headline figures, and a stage's metrics and outputs as Markdown."""

import json
from pathlib import Path
from typing import Any

from pipeline.dag import LockedOutput
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


def stage_markdown(*, stage: str, outputs: list[LockedOutput], seconds: float, cached: bool) -> str:
    """One stage's outputs with their hashes, and its metrics, as Markdown tables."""
    how = "unchanged, or restored from DVC's cache" if cached else f"ran for {seconds:.0f} s"
    lines = [f"# {stage}", "", f"{how}.", "", "| output | md5 | bytes | files |", "|---|---|---:|---:|"]
    lines += [f"| `{out.path}` | `{out.md5}` | {out.size} | {out.files} |" for out in outputs]
    for out in outputs:
        rows = _metrics(Path(out.path))
        if rows:
            lines += ["", "| metric | value |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _metrics(folder: Path) -> list[tuple[str, str]]:
    """``summary.json`` or else ``metrics.json`` of an output, nested keys joined by dots; numbers and short texts only."""
    file = next((folder / name for name in ("summary.json", "metrics.json") if (folder / name).is_file()), None)
    return [] if file is None else list(_flat(json.loads(file.read_text(encoding="utf-8")), ""))


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}.{key}" if name else str(key))]
    if isinstance(value, float):
        return [(name, f"{value:.6g}")]
    return [(name, str(value))] if isinstance(value, int | str) else []
