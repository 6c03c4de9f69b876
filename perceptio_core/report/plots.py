"""Plots as inline SVG that follows the page's text colour, so that one picture serves a light and a dark screen."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from numpy.typing import NDArray

from perceptio_core.training.curve_files import Curve

COLOURS = ("#e6447d", "#2391c8", "#b97a1c", "#3f9a4c")
"""Of the variants in order; each has a contrast of at least 3 to the page's card, light and dark."""
_TEXT = "#010203"  # stands for the page's text colour until the SVG is written
_STYLE: Any = {
    "svg.fonttype": "none",
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


def smooth(values: Sequence[float], *, weight: float) -> NDArray[np.float64]:
    """Exponential moving average without a bias towards the start; `weight` in [0, 1) of the past."""
    total, mass, out = 0.0, 0.0, []
    for value in values:
        total, mass = weight * total + value, weight * mass + 1
        out.append(total / mass)
    return np.asarray(out)


def loss_names(variants: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """The losses that any variant has a training curve of, the total first."""
    names = {name.removeprefix("train/") for curves in variants.values() for name in curves if name.startswith("train/")}
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def loss_plot(variants: Mapping[str, Mapping[str, Curve]], names: Sequence[str]) -> Markup:
    """Losses in small plots side by side: each variant's training curve (faint, and smoothed) and validation points."""
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    said = []
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": " ".join(names)}):
        figure = Figure(figsize=(2.9 * columns, 2.1 * rows), layout="constrained")
        for index, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.set_title(name.replace("_", " "), fontsize=10, loc="left")
            said.append(f"{name.replace('_', ' ')} over the steps")
            for colour, (variant, curves) in zip(COLOURS, variants.items(), strict=False):
                if (train := curves.get(f"train/{name}")) is not None:
                    steps, values = train
                    weight = math.exp(-30 / max(30, len(steps)))
                    smoothed = smooth(values, weight=weight)
                    axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.7)
                    axes.plot(steps, smoothed, color=colour, linewidth=1.5, label=variant)
                    said.append(f"{variant} from {values[0]:.2g} to {smoothed[-1]:.2g} at step {steps[-1]}")
                if (held_out := curves.get(f"val/{name}")) is not None:
                    axes.plot(*held_out, "o", color=colour, markersize=3.5, markeredgecolor=_TEXT, markeredgewidth=0.5)
                    said.append(f"{held_out[1][-1]:.2g} on the validation split")
            axes.set_ylim(bottom=0)
            axes.margins(x=0.02)
            axes.set_xlabel("step", fontsize=8)
        return _svg(figure, label=", ".join(said))


def usage_plot(counts: Sequence[float]) -> Markup:
    """How often each code of the codebook is used, most used first, with the even share as a line."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    share = 100 * ordered / max(ordered.sum(), 1)
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": "usage"}):
        figure = Figure(figsize=(3.6, 2.1), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(np.arange(len(share)), share, width=0.85, color=COLOURS[1])
        axes.axhline(100 / len(share), color=_TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("code, most used first")
        axes.set_ylabel("% of all places")
        axes.margins(x=0.01)
        axes.grid(visible=False, axis="x")
        said = f"the most used {share[0]:.2g} %, the least {share[-1]:.2g} %, an even share {100 / len(share):.2g} %"
        return _svg(figure, label=f"Share of each depth code: {said}")


def _svg(figure: Figure, *, label: str) -> Markup:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    body = stream.getvalue()
    body = body[body.index("<svg") :].replace(_TEXT, "currentColor")
    body = re.sub(r'(<g) id="[^"]*"|<style.*?</style>', r"\1", body, flags=re.DOTALL)  # the same in every plot
    body = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*"', r"\1\2", body, count=1)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}" class="plot"', 1))
