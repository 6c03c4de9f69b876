"""The figure for the README: one question, its mask, its depth map and its answer, side by side."""

import io
import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from perceptio_core.report.panels import Panel
from perceptio_core.report.pictures import depth_picture, overlay


def readme_figure(panels: Sequence[Panel]) -> bytes:
    """A PNG with four panels, of the best-scored question for which the model wrote both a mask and a depth map.

    Where no question has both, the best-scored one with the most pictures is shown. Panels without content stay empty.

    Raises:
        ValueError: there are no panels.
    """
    if not panels:
        raise ValueError("no panels to draw a figure of")
    panel = max(panels, key=lambda p: ((p.predicted is not None) + (p.depth is not None), p.row["correct"]))
    figure = Figure(figsize=(12, 3.7), dpi=130, layout="constrained", facecolor="white")
    axes = figure.subplots(1, 4)
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(panel.image)
    axes[0].set_title(textwrap.fill(panel.row["question"], 36), fontsize=10, loc="left")
    if panel.predicted is not None:
        axes[1].imshow(overlay(panel.image, [panel.predicted]))
        axes[1].set_title("1  [SEG]: the mask", fontsize=10, loc="left")
    if panel.depth is not None:
        axes[2].imshow(depth_picture(panel.depth, size=panel.image.size))
        axes[2].set_title(f"2  {len(panel.row['depth_codes'])} depth tokens", fontsize=10, loc="left")
    axes[3].set(xlim=(0, 1), ylim=(0, 1), aspect=panel.image.height / panel.image.width)
    axes[3].set_title("3  the answer", fontsize=10, loc="left")
    answer = textwrap.fill(panel.row["answer"] or "(no text)", 24)
    axes[3].text(0.02, 0.6, answer, fontsize=14, va="center", transform=axes[3].transAxes)
    score = f"IoU {100 * panel.row['correct']:.0f} %" if panel.row["truth"] else f"expected: {panel.row['expected']}"
    axes[3].text(0.02, 0.25, score, fontsize=11, color="#6a6773", transform=axes[3].transAxes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()
