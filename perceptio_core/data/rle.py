"""Masks as compressed COCO run lengths, ``{"size": [height, width], "counts": ascii}``: thin wrappers of pycocotools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Rle = Mapping[str, Any]


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
        ValueError: none of these forms, a size other than the image's, or run lengths that do not fill the image.
    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height=height, width=width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError("segmentation is neither a list of polygons nor a run-length dict with size and counts")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"a mask of size {segmentation['size']} for an image of [{height}, {width}]")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise ValueError(f"run lengths must be whole numbers >= 0 with sum {height * width}")
        return _plain(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    if not isinstance(counts, str | bytes):
        raise ValueError(f"counts is of type {type(counts).__name__}; allowed are a list, a string or bytes")
    rle = {"size": [height, width], "counts": counts if isinstance(counts, str) else counts.decode("latin1")}
    try:
        decode(rle)
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"the compressed run lengths do not describe a mask of [{height}, {width}]: {error}") from error
    return rle


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
