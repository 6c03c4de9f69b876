"""What the driver shows of finished work: the report's headline metrics, and a stage's."""

import json
from pathlib import Path

from perceptio_core.metrics import read_metrics
from perceptio_core.progress import duration
from perceptio_core.report.published import Published
from perceptio_core.report.tables import CONTROLS, Row, headline_groups, number
from stages.common import StagePaths


def headline(profile: str) -> str:
    """The report's headline table in plain text, what the trainings took, and where the report is."""
    report = StagePaths(profile).out("report")
    metrics = read_metrics(report / "metrics.json")
    controls = [control for control in CONTROLS if any(metric.name.startswith(f"{control.variant}_") for metric in metrics)]
    nothing_published = Published(note="", benchmarks=(), models=())
    rows = [["", "value", "95 % interval", "chance", "n", *(control.short for control in controls)]]
    titles: dict[int, str] = {}  # by the row that each stands before
    for group in headline_groups(metrics, controls=controls, published=nothing_published):
        titles[len(rows)] = group.title
        rows += [_cells(row) for row in group.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for place, row in enumerate(rows):
        lines += [titles[place]] if place in titles else []
        lines.append("  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))).rstrip())
    for file in sorted(report.with_name("measured").glob("*.json")):
        took = json.loads(file.read_text(encoding="utf-8"))
        lines.append(
            f"{file.stem}: {duration(took['seconds'])}, {took['samples_per_second']:.1f} samples/s, "
            f"{took['peak_memory_gib']:.1f} GiB at the peak"
        )
    return "\n".join([*lines, "", f"report: {(report / 'report.html').absolute()}"])


def numbers_in(file: Path) -> dict[str, float]:
    """The numbers of a JSON object by name, as in ``summary.json``; none where there is no such file."""
    if not file.is_file():
        return {}
    values = json.loads(file.read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _cells(row: Row) -> list[str]:
    metric = row.metric
    return [
        f"  {row.label.title}",
        number(metric.value),
        "" if metric.low is None or metric.high is None else f"{number(metric.low)} to {number(metric.high)}",
        "" if metric.chance is None else number(metric.chance),
        "" if metric.n is None else str(metric.n),
        *("" if other is None else number(other.value) for _, other in row.controls),
    ]
