"""Depth order against the number of labels, as a picture: ``docs/labels.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.study.rows import MAIN, Row
from benchmarks.study.tables import NAMES, cell

LABELS = {"labels_100": 100, "labels_1000": 1000, "labels_10000": 10_000, MAIN: 11_250}
"""Marked pictures with labels, by regime."""
_SHOWN = {"full": ("#1b6ca8", 0.97), "no_depth": ("#c8553d", 1.0), "control": ("#6b6b6b", 1.03)}
"""Colours, and factors that move points beside one another."""
_CHANCE = (100 / 3 + 100 / 4 + 100 / 5) / 3


def draw(file: Path, rows: Sequence[Row]) -> None:
    """Write the picture as a PNG of the same bytes for the same rows."""
    FigureCanvasAgg(picture(rows)).print_png(file, metadata={"Software": None})


def picture(rows: Sequence[Row]) -> Figure:
    """A line per model: a point per regime that was run, filled where it is the mean of several trainings.

    A bar reaches from the lowest to the highest bound of the 95 % intervals of these trainings.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for variant, (colour, beside) in _SHOWN.items():
        found = {
            labels: cell(rows, variant=variant, regime=regime, metric="hardblink_mean") for regime, labels in LABELS.items()
        }
        points = {labels * beside: one for labels, one in found.items() if one is not None}
        if not points:
            continue
        axes.plot(list(points), [one.value for one in points.values()], color=colour, linewidth=1.2, label=NAMES[variant])
        for place, one in points.items():
            axes.plot(place, one.value, "o", color=colour, markerfacecolor=colour if one.seeds > 1 else "white")
            if one.low is not None and one.high is not None:
                axes.vlines(place, one.low, one.high, color=colour, linewidth=1.0)
    axes.axhline(_CHANCE, color="#999999", linewidth=1.0, linestyle=":")
    axes.text(100, _CHANCE + 0.8, "chance", color="#666666", fontsize=9)
    axes.set_xscale("log")
    axes.set_xticks([100, 1000, 10_000], ["100", "1,000", "10,000"])
    axes.set_xlabel("pictures with depth-order labels")
    axes.set_ylabel("depth order, % right")
    axes.set_ylim(20, 80)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure
