"""Plots as inline SVG that follows the page's text colour, so that one picture serves a light and a dark screen."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perceptio_core.training.curves import read_curve

COLOURS = ("#e6447d", "#2a9fd6", "#e8a33d", "#58b368")
_TEXT = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "perceptio",  # the same plot gives the same bytes
    "font.size": 9,
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _TEXT,
    "grid.alpha": 0.12,
    "axes.grid": True,
}

_ORDER = ("total", "llm", "seg_ce", "seg_dice", "marker", "token", "count", "reconstruction")

Curve = tuple[Sequence[int], Sequence[float]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """All curves below a DVCLive folder, as {"train/total": (steps, values), ...}."""
    metrics = folder / "plots" / "metrics"
    return {path.relative_to(metrics).with_suffix("").as_posix(): read_curve(path) for path in sorted(metrics.rglob("*.tsv"))}


def smooth(values: Sequence[float], *, weight: float) -> NDArray[np.float64]:
    """Exponential moving average without a bias towards the start; `weight` in [0, 1) of the past."""
    total, mass, out = 0.0, 0.0, []
    for value in values:
        total, mass = weight * total + value, weight * mass + 1
        out.append(total / mass)
    return np.asarray(out)


def loss_plot(variants: Mapping[str, Mapping[str, Curve]]) -> str:
    """Every loss in a small plot of its own: each variant's training curve (faint, and smoothed) and validation points."""
    names = sorted(
        {name.removeprefix("train/") for curves in variants.values() for name in curves if name.startswith("train/")}
    )
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    columns = 4
    rows = math.ceil(len(names) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, 2.1 * rows), layout="constrained")
        for index, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.set_title(name.replace("_", " "), fontsize=9.5, loc="left")
            for colour, (variant, curves) in zip(COLOURS, variants.items(), strict=False):
                if (train := curves.get(f"train/{name}")) is not None:
                    steps, values = train
                    axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.7)
                    weight = math.exp(-30 / max(30, len(steps)))
                    axes.plot(steps, smooth(values, weight=weight), color=colour, linewidth=1.5, label=variant)
                if (held_out := curves.get(f"val/{name}")) is not None:
                    axes.plot(*held_out, "o", color=colour, markersize=3.5, markeredgecolor=_TEXT, markeredgewidth=0.5)
            axes.set_ylim(bottom=0)
            axes.margins(x=0.02)
        figure.supxlabel("step", fontsize=9)
        return _svg(figure, label="Training curves of every loss")


def usage_plot(counts: Sequence[float]) -> str:
    """How often each code of the codebook is used, most used first, with the even share as a line."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    share = 100 * ordered / max(ordered.sum(), 1)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, 2.2), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(np.arange(len(share)), share, width=0.85, color=COLOURS[1])
        axes.axhline(100 / len(share), color=_TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("code, most used first")
        axes.set_ylabel("% of all places")
        axes.margins(x=0.01)
        axes.grid(visible=False, axis="x")
        return _svg(figure, label="Share of each depth code")


def _svg(figure: Figure, *, label: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    body = stream.getvalue()
    body = body[body.index("<svg") :].replace(_TEXT, "currentColor")
    body = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", body, count=1)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}" class="plot"', 1)
