"""Masks as compressed COCO run lengths, ``{"size": [height, width], "counts": ascii}``: thin wrappers of pycocotools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Rle = Mapping[str, Any]
_MAX_CHARACTERS = 7  # 35 bits: no run of a picture needs more
_MAX_PIXELS = 1 << 28  # no picture has more; pycocotools counts in 32 bits, and crashes on sizes far beyond


def encode(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """A boolean mask as compressed run lengths with plain JSON values."""
    return _plain(coco.encode(np.asfortranarray(mask_HW, dtype=np.uint8)))


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Compressed run lengths as a boolean mask (height, width)."""
    return np.asarray(coco.decode(dict(rle)), dtype=bool)


def area(rle: Rle) -> int:
    """Number of pixels in the mask."""
    return int(coco.area(dict(rle)))


def from_segmentation(segmentation: Any, *, height: int, width: int) -> dict[str, Any]:
    """An annotation's `segmentation` in any of COCO's forms as compressed run lengths; several polygons become their union.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...], an uncompressed RLE (`counts` a list of run lengths) or a
            compressed one (`counts` a string).
        height: of the image, pixels.
        width: of the image, pixels.

    Raises:
        ValueError: none of these forms, a size other than the image's, run lengths that do not fill the image, or an image
            of no size that a picture can have.
    """
    if height < 1 or width < 1 or height * width > _MAX_PIXELS:
        raise ValueError(f"an image of {height} x {width} pixels; at most {_MAX_PIXELS} are read")
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height=height, width=width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError("segmentation is neither a list of polygons nor a run-length dict with size and counts")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"a mask of size {segmentation['size']} for an image of [{height}, {width}]")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ValueError(f"run lengths must be whole numbers >= 0 with sum {height * width}")
        return _plain(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    if not isinstance(counts, str | bytes):
        raise ValueError(f"counts is of type {type(counts).__name__}; allowed are a list, a string or bytes")
    text = counts if isinstance(counts, str) else counts.decode("latin1")
    runs = run_lengths(text)
    # pycocotools reads on where run lengths do not fill their picture, to a wrong mask or a crash.
    if runs.min(initial=0) < 0 or int(runs.sum()) != height * width:
        raise ValueError(f"the compressed run lengths do not describe a mask of [{height}, {width}]: their sum is {runs.sum()}")
    return {"size": [height, width], "counts": text}


def run_lengths(counts: str) -> NDArray[np.int64]:
    """The run lengths that COCO's compressed string stands for (``rleFrString`` of pycocotools' ``maskApi.c``).

    A number is one or more characters: code - 48 holds 5 bits, lowest first, and whether more follow; the highest bit of the
    last is the sign. From the fourth run on, a number is the difference to the run before the last.

    Raises:
        ValueError: another character, or a number that is cut off or longer than 32 bits.
    """
    codes = np.frombuffer(counts.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("counts is no compressed run-length string")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError("counts holds a number that is too long")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs


def _from_polygons(polygons: Sequence[Any], *, height: int, width: int) -> dict[str, Any]:
    for polygon in polygons:
        # pycocotools takes a list of four numbers for a box, silently.
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon must be a list of at least three x, y pairs")
        if not all(isinstance(v, int | float) and math.isfinite(v) and abs(v) < 1e6 for v in polygon):
            raise ValueError("a polygon holds a coordinate that is no finite number below one million")
    if not polygons:
        return encode(np.zeros((height, width), bool))
    return _plain(coco.merge(coco.frPyObjects(polygons, height, width)))


def _plain(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
