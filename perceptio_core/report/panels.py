"""Qualitative panels: image, masks, depth map, question, the tokens as written, answer and verdict."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import MAX_PIXELS, open_image
from perceptio_core.data.records import inside
from perceptio_core.data.rle import decode
from perceptio_core.jsonl import read_jsonl
from perceptio_core.report.pictures import depth_picture, overlay, shrink

SIDE = 448
_DEPTH_SPAN = re.compile(r"<depth_start>.*?(?:<depth_end>|$)", re.DOTALL)
_KEYS = ("benchmark", "item_id", "image", "question", "raw", "answer", "expected", "correct", "mask", "truth", "depth_codes")
_TITLES = {
    "questions": "your questions",
    "masks": "your masks",
    "objects": "objects of your COCO file",
    "res": "referring segmentation",
    "hardblink": "HardBLINK",
    "mmbench": "MMBench",
    "seedbench": "SEED-Image",
    "mme": "MME",
    "grefcoco": "gRefCOCO",
    "reasonseg": "ReasonSeg",
    "scienceqa": "ScienceQA-image",
}


@dataclass(frozen=True, kw_only=True)
class PanelPicture:
    """One picture of a panel, its caption, and what is to be seen on it in words."""

    image: Image.Image
    caption: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of the generated text: kind "text" or "seg" with `text`, or "depth" with `codes`."""

    kind: str
    text: str = ""
    codes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One question with everything that is drawn of it.

    Attributes:
        row: a row of `panels.jsonl` of the stage `evaluate`.
        image: the picture, at most `SIDE` wide and high.
        depth: decoded depth map (near = high), or None where the model wrote no codes.
        teacher: the teacher's depth map of the same picture (near = high), or None.
    """

    row: Mapping[str, Any]
    image: Image.Image
    depth: NDArray[np.float32] | None
    teacher: NDArray[np.float32] | None

    @property
    def predicted(self) -> NDArray[np.bool_] | None:
        """The union of the predicted masks."""
        return decode(self.row["mask"]) if self.row["mask"] else None

    @property
    def true(self) -> NDArray[np.bool_] | None:
        """The right mask."""
        return decode(self.row["truth"]) if self.row["truth"] else None

    @property
    def title(self) -> str:
        """Benchmark and item."""
        return f"{_TITLES.get(self.row['benchmark'], self.row['benchmark'])} · {self.row['item_id']}"

    @property
    def right(self) -> bool:
        """Whether the answer is right; for a mask, whether the IoU is at least one half."""
        return bool(self.row["correct"] >= 0.5)

    @property
    def verdict(self) -> str:
        """Right or wrong, or the IoU."""
        return f"IoU {100 * self.row['correct']:.0f}" if self.row["truth"] else "right" if self.right else "wrong"

    @property
    def expected(self) -> str:
        """The right answer."""
        return "outlined" if self.row["truth"] else str(self.row["expected"])

    @property
    def tokens(self) -> list[Span]:
        """What the model wrote."""
        return spans(self.row["raw"])

    @property
    def pictures(self) -> list[PanelPicture]:
        """The image and what was drawn of it."""
        found = [PanelPicture(image=self.image, caption="image", alt=f"The picture of the question: {self.row['question']}")]
        predicted, true = self.predicted, self.true
        if predicted is not None or true is not None:
            drawn = overlay(self.image, [] if predicted is None else [predicted], outline_HW=true)
            masks = {"predicted mask, a tint,": predicted, "true mask, an outline,": true}
            said = [f"{name} {extent(mask)}" for name, mask in masks.items() if mask is not None]
            found.append(PanelPicture(image=drawn, caption="mask", alt=f"The image with the {' and the '.join(said)}"))
        maps = {"depth it wrote": self.depth, "teacher's depth": self.teacher}
        for caption, depth in maps.items():
            if depth is not None:
                alt = f"Depth map ({caption}): nearest {_place(_near(depth))}, farthest {_place(_near(-depth))}"
                drawn = depth_picture(depth, size=self.image.size)
                found.append(PanelPicture(image=drawn, caption=caption, alt=alt))
        return found


def read_panels(
    *,
    path: Path,
    root: Path,
    count: int,
    decode_depth: Callable[[Sequence[int]], NDArray[np.float32]],
    teacher: Callable[[Image.Image], NDArray[np.float32]],
    max_pixels: int = MAX_PIXELS,
) -> list[Panel]:
    """At most `count` panels of a `panels.jsonl`, in turn from each benchmark.

    Args:
        path: rows as `perceptio_core.evaluation.running.panel_questions` writes them.
        root: folder that the image paths are relative to.
        count: most panels.
        decode_depth: codes -> depth map.
        teacher: picture -> the teacher's depth map; asked only where the model wrote depth codes.
        max_pixels: of the pictures, as `evaluate` had it.

    Raises:
        ValueError: a malformed row, an image's path leads out of `root`, or it cannot be opened.
    """
    panels = []
    for row in _in_turn(read_jsonl(path, keys=_KEYS))[:count]:
        # By its words: the folders that they name may be links, as the user laid them out.
        image = open_image(root / inside("", row["image"], named_in=path), max_pixels=max_pixels)
        codes = row["depth_codes"]
        panels.append(
            Panel(
                row=row,
                image=shrink(image, side=SIDE),
                depth=None if codes is None else decode_depth(codes),
                teacher=None if codes is None else teacher(image),
            )
        )
    return panels


def spans(raw: str) -> list[Span]:
    """The generated text with its perception tokens set apart."""
    found, position = [], 0
    for match in _DEPTH_SPAN.finditer(raw):
        found += _text_spans(raw[position : match.start()])
        found.append(Span(kind="depth", codes=re.findall(r"<depth_(\d+)>", match.group())))
        position = match.end()
    return found + _text_spans(raw[position:])


def _text_spans(text: str) -> list[Span]:
    parts = re.split(r"(\[SEG\])", text)
    return [Span(kind="seg" if part == "[SEG]" else "text", text=part) for part in parts if part]


def _in_turn(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of every benchmark, then the second of every one, and so on."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["benchmark"], []).append(row)
    longest = max(map(len, groups.values()), default=0)
    return [group[i] for i in range(longest) for group in groups.values() if i < len(group)]


def extent(mask_HW: NDArray[np.bool_]) -> str:
    """How much of the picture a mask covers, and where."""
    if not mask_HW.any():
        return "empty"
    rows, columns = np.nonzero(mask_HW)
    height, width = mask_HW.shape
    where = _place((int(3 * rows.mean() / height), int(3 * columns.mean() / width)))
    return f"on {100 * mask_HW.mean():.2g} % of it {where}"


def _near(depth_HW: NDArray[np.floating]) -> tuple[int, int]:
    """Row and column, of three each, of the part of a map that is highest on average."""
    parts = [[part.mean() for part in np.array_split(row, 3, axis=1)] for row in np.array_split(depth_HW, 3, axis=0)]
    row, column = divmod(int(np.argmax(parts)), 3)
    return row, column


def _place(cell: tuple[int, int]) -> str:
    """``(0, 2)`` of three rows and columns as "at the top right"."""
    row, column = ("top", "", "bottom")[cell[0]], ("left", "", "right")[cell[1]]
    return f"at the {f'{row} {column}'.strip()}" if row or column else "in the middle"
