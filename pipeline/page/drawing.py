"""An answer as HTML: the picture with a tint for each object, the depth codes at their places, the text, the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.report.panels import extent, spans
from perceptio_core.report.pictures import DEPTH_COLOURS, MASKS, data_uri, depth_picture, overlay, shrink

if TYPE_CHECKING:
    from perceptio_core.model.inference import Prediction  # brings the model's code, which takes seconds

SIDE = 448
"""Most pixels of a picture that is shown, wide and high (ours)."""

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("pipeline.page"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How right an answer is."""

    text: str
    right: bool


@dataclass(kw_only=True)
class Answer:
    """What is drawn of one answer while it grows; pictures are encoded once, when they come.

    Args:
        title: which model, and whose codes.
        image: the picture that is asked about.
        truth: the right mask, drawn as an outline; None where there is none.
        num_codes: K of the codebook.
        side: codes of a row of the depth map.
    """

    title: str
    image: Image.Image
    truth: NDArray[np.bool_] | None
    num_codes: int
    side: int
    _masks: list[dict[str, str]] = field(default_factory=list)
    _depth: str | None = None

    def __post_init__(self) -> None:
        self._shown = shrink(self.image, side=SIDE)
        self._base = data_uri(overlay(self._shown, [], outline_HW=self.truth))

    def html(self, prediction: Prediction, *, seconds: float | None, verdict: Verdict | None = None) -> str:
        """As far as it is written; `seconds` that it took say that it is whole."""
        for number, mask_HW in enumerate(prediction.masks[len(self._masks) :], start=len(self._masks)):
            colour = MASKS[number % len(MASKS)]
            self._masks.append(
                {
                    "uri": _tint(mask_HW, colour, size=self._shown.size),
                    "said": extent(mask_HW),
                    "colour": "#{:02x}{:02x}{:02x}".format(*colour),
                }
            )
        if self._depth is None and prediction.depth_map is not None:
            self._depth = data_uri(depth_picture(prediction.depth_map, size=self._shown.size))
        codes = [] if prediction.depth_codes is None else prediction.depth_codes.tolist()
        return TEMPLATES.get_template("answer.html").render(
            title=self.title,
            verdict=verdict,
            # A character that is half written is not shown.
            text=prediction.text if seconds is not None else prediction.text.rstrip("\N{REPLACEMENT CHARACTER}"),
            seconds=seconds,
            base=self._base,
            size=self._shown.size,
            outlined=self.truth is not None,
            masks=self._masks,
            depth=self._depth,
            cells=self._cells(codes),
            codes=len(codes),
            side=self.side,
            tokens=spans(prediction.raw),
            passes=prediction.passes,
        )

    def _cells(self, codes: Sequence[int]) -> list[dict[str, Any]]:
        """The places of the depth map, row by row: those that are written, and the empty ones; none without any."""
        if not codes:
            return []
        cells: list[dict[str, Any]] = []
        for place in range(self.side * self.side):
            where = f"Row {place // self.side + 1}, column {place % self.side + 1}"
            if place >= len(codes):
                cells.append({"colour": None, "says": f"{where}: not written yet"})
                continue
            nearer = sum(code < codes[place] for code in codes) / len(codes)
            says = (
                f"{where}: code {codes[place]} of {self.num_codes} (far to near); nearer than {100 * nearer:.0f} % of the map"
            )
            cells.append({"colour": _colours(self.num_codes)[codes[place]], "says": says})
        return cells


def beside(answers: Sequence[str]) -> str:
    """Answers side by side, or where there are none what will be there."""
    return TEMPLATES.get_template("beside.html").render(answers=[Markup(one) for one in answers if one])


def refusal(title: str, sentence: str) -> str:
    """In the place of an answer, why there is none."""
    return TEMPLATES.get_template("refusal.html").render(title=title, sentence=sentence)


def turns(rows: Sequence[dict[str, str]]) -> str:
    """The table of the questions and answers so far; empty without any."""
    return TEMPLATES.get_template("turns.html").render(rows=rows) if rows else ""


def _tint(mask_HW: NDArray[np.bool_], colour: tuple[int, int, int], *, size: tuple[int, int]) -> str:
    """A mask as a picture to lay over another one: the colour, half clear, where it is true."""
    alpha = Image.fromarray(mask_HW.astype(np.uint8) * 140).resize(size, Image.Resampling.NEAREST)
    layer = Image.new("RGBA", size, (*colour, 0))
    layer.putalpha(alpha)
    return data_uri(layer)


@cache
def _colours(num_codes: int) -> list[str]:
    """A colour for each code: they are in the order of nearness, and near is bright, as in `depth_picture`."""
    return [to_hex(colour) for colour in matplotlib.colormaps[DEPTH_COLOURS](np.linspace(0, 1, num_codes))]
