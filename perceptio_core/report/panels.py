"""Qualitative panels: image, masks, depth map, question, the tokens as written, answer and verdict."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import MAX_PIXELS, open_image
from perceptio_core.data.records import inside
from perceptio_core.data.rle import decode
from perceptio_core.report.pictures import data_uri, depth_picture, overlay, shrink

SIDE = 448
_DEPTH_SPAN = re.compile(r"<depth_start>.*?(?:<depth_end>|$)", re.DOTALL)
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
        path: rows {benchmark, item_id, image, question, raw, answer, expected, correct, mask, truth, depth_codes}.
        root: folder that the image paths are relative to.
        count: most panels.
        decode_depth: codes -> depth map.
        teacher: picture -> the teacher's depth map; asked only where the model wrote depth codes.
        max_pixels: of the pictures, as `evaluate` had it.

    Raises:
        ValueError: an image's path leads out of `root`, or it cannot be opened.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [
        _panel(row, path=path, root=root, decode_depth=decode_depth, teacher=teacher, max_pixels=max_pixels)
        for row in _in_turn(rows)[:count]
    ]


def panel_html(panel: Panel) -> str:
    """One panel as a card."""
    row, predicted, true = panel.row, panel.predicted, panel.true
    figures = [_figure(panel.image, "image")]
    if predicted is not None or true is not None:
        figures.append(_figure(overlay(image=panel.image, predicted_HW=predicted, true_HW=true), "mask"))
    if panel.depth is not None:
        figures.append(_figure(depth_picture(panel.depth, size=panel.image.size), "depth it wrote"))
    if panel.teacher is not None:
        figures.append(_figure(depth_picture(panel.teacher, size=panel.image.size), "teacher's depth"))
    if true is not None:
        verdict, kind = f"IoU {100 * row['correct']:.0f}", "right" if row["correct"] >= 0.5 else "wrong"
        expected = "outlined"
    else:
        verdict, kind = ("right", "right") if row["correct"] >= 0.5 else ("wrong", "wrong")
        expected = escape(str(row["expected"]))
    answer = escape(row["answer"]) or '<span class="soft">(no text)</span>'
    title = f"{_TITLES.get(row['benchmark'], row['benchmark'])} · {row['item_id']}"
    return (
        f'<article class="panel"><div class="pictures">{"".join(figures)}</div><div class="text">'
        f'<span class="verdict {kind}">{verdict}</span><span class="bench">{escape(title)}</span>'
        f'<div class="question">{escape(row["question"])}</div>'
        f'<div class="tokens">{tokens_html(row["raw"])}</div>'
        f"<dl><dt>answer</dt><dd>{answer}</dd><dt>expected</dt><dd>{expected}</dd></dl></div></article>"
    )


def tokens_html(raw: str) -> str:
    """The generated text with perception tokens set off; a depth span opens on a click."""

    def chips(text: str) -> str:
        return escape(text).replace("[SEG]", '<span class="seg">[SEG]</span>')

    out, position = [], 0
    for span in _DEPTH_SPAN.finditer(raw):
        codes = re.findall(r"<depth_(\d+)>", span.group())
        out.append(chips(raw[position : span.start()]))
        out.append(
            f'<details><summary class="depth">&lt;depth_start&gt; {len(codes)} codes &lt;depth_end&gt;</summary>'
            f'<span class="soft"> {" ".join(codes)} </span></details> '
        )
        position = span.end()
    return "".join([*out, chips(raw[position:])])


def _figure(image: Image.Image, caption: str) -> str:
    return f'<figure><img src="{data_uri(image)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _in_turn(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of every benchmark, then the second of every one, and so on."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["benchmark"], []).append(row)
    longest = max(map(len, groups.values()), default=0)
    return [group[i] for i in range(longest) for group in groups.values() if i < len(group)]


def _panel(
    row: Mapping[str, Any],
    *,
    path: Path,
    root: Path,
    decode_depth: Callable[[Sequence[int]], NDArray[np.float32]],
    teacher: Callable[[Image.Image], NDArray[np.float32]],
    max_pixels: int,
) -> Panel:
    # By its words: the folders that they name may be links, as the user laid them out.
    image = open_image(root / inside("", row["image"], named_in=path), max_pixels=max_pixels)
    codes = row["depth_codes"]
    return Panel(
        row=row,
        image=shrink(image, side=SIDE),
        depth=None if codes is None else decode_depth(codes),
        teacher=None if codes is None else teacher(image),
    )
