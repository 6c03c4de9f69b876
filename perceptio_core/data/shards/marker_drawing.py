"""Drawing marked points in HardBLINK's style: a red circle, its letter in white in a black box above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont


class Point(Protocol):
    """A letter and a pixel position (column x, row y)."""

    @property
    def letter(self) -> str:
        """One capital letter."""

    @property
    def x(self) -> int:
        """Column."""

    @property
    def y(self) -> int:
        """Row."""


@dataclass(frozen=True, kw_only=True)
class MarkerStyle:
    """Pixel sizes of a drawn marker. HardBLINK at 336 px: circle of radius 4, 2 px line, box 10 x 15, 7 px between."""

    radius: int
    line: int
    gap: int
    cap: int
    box_width: int
    box_height: int

    @property
    def width(self) -> int:
        """Width of circle and box together."""
        return max(self.box_width, 2 * self.radius + 1)

    @property
    def height(self) -> int:
        """Height of circle, gap and box together."""
        return 2 * self.radius + 1 + self.gap + self.box_height


@lru_cache(maxsize=64)
def marker_style(shorter_side: int) -> MarkerStyle:
    """HardBLINK's proportions at this image size, never smaller than what can be read (letters of 8 px)."""
    scale = shorter_side / 336.0
    cap = max(8, round(8 * scale))
    return MarkerStyle(
        radius=max(3, round(4 * scale)),
        line=max(2, round(2 * scale)),
        gap=max(1, round(7 * scale) - 1),
        cap=cap,
        box_width=cap + 2,
        box_height=max(cap + 3, round(15 * scale)),
    )


@lru_cache(maxsize=64)
def _letter_mask(letter: str, cap: int) -> Image.Image:
    """The letter in white on black, cut to its ink, with capitals `cap` pixels high."""
    size = cap
    while True:
        font = ImageFont.load_default(size=size)
        _, top, right, bottom = font.getbbox(letter)
        if bottom - top >= cap:
            break
        size += 1
    mask = Image.new("L", (int(right) + 2, int(bottom) + 2))
    ImageDraw.Draw(mask).text((0, 0), letter, fill=255, font=font)
    return mask.crop(mask.getbbox())


def draw_markers(image: Image.Image, markers: Sequence[Point]) -> Image.Image:
    """A copy of the image (RGB) with a red circle at every point and its letter in a black box above, inside the image."""
    marked = image.convert("RGB").copy()
    draw = ImageDraw.Draw(marked)
    style = marker_style(min(marked.size))
    for marker in markers:
        x, y = marker.x, marker.y
        draw.ellipse(
            (x - style.radius, y - style.radius, x + style.radius, y + style.radius),
            outline=(255, 0, 0),
            width=style.line,
        )
        left = min(max(x - style.box_width // 2, 0), marked.width - style.box_width)
        top = y - style.radius - style.gap - style.box_height
        if top < 0:
            top = y + style.radius + style.gap + 1
        draw.rectangle((left, top, left + style.box_width - 1, top + style.box_height - 1), fill=(0, 0, 0))
        letter = _letter_mask(marker.letter, style.cap)
        inset = ((style.box_width - letter.width) // 2, (style.box_height - letter.height) // 2)
        marked.paste((255, 255, 255), (left + inset[0], top + inset[1]), letter)
    return marked
