"""What the driver shows of finished work: the report's headline metrics, and a stage's."""

import json
from pathlib import Path

from perceptio_core.progress import duration
from perceptio_core.report.tables import ORDER
from stages.common import StagePaths


def headline(profile: str) -> str:
    """The report's metrics as a table of plain text in the report's order, what the trainings took, and where the report is."""
    report = StagePaths(profile).out("report")
    rows = [("metric", "value", "95 % interval", "chance", "n")]
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    place = {name: number for number, name in enumerate(ORDER)}  # those of controls come last, as they stand
    for metric in sorted(metrics, key=lambda metric: place.get(metric["name"], len(place))):
        known = metric["low"] is not None and metric["high"] is not None
        interval = f"{metric['low']:.1f} .. {metric['high']:.1f}" if known else ""
        count = "" if metric["n"] is None else str(metric["n"])
        chance = "" if metric["chance"] is None else f"{metric['chance']:.1f}"
        rows.append((metric["name"], f"{metric['value']:.4g}", interval, chance, count))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
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
