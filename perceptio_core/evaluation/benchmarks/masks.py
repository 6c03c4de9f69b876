"""Set arithmetic of masks that stay compressed COCO run lengths: exact pixel counts, no picture is unpacked (pycocotools)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from perceptio_core.data.rle import Rle, area, encode, from_segmentation


def union(rles: Sequence[Rle], *, size: Sequence[int]) -> Rle:
    """The pixels in any of `rles`, all of (height, width) = `size`; none gives an empty mask.

    Raises:
        ValueError: a mask has another size.
    """
    for rle in rles:
        if list(rle["size"]) != list(size):
            raise ValueError(f"a mask of size {list(rle['size'])} for an image of size {list(size)}")
    if not rles:
        return encode(np.zeros((int(size[0]), int(size[1])), dtype=bool))
    return rles[0] if len(rles) == 1 else _plain(coco.merge([dict(rle) for rle in rles]))


def overlap(predicted: Rle, truth: Rle) -> tuple[int, int]:
    """Pixels in both and pixels in either, as exact integers; the masks are of one size."""
    both = area(intersection(predicted, truth))
    return both, area(predicted) + area(truth) - both


def intersection(one: Rle, other: Rle) -> Rle:
    """The pixels in both masks; they are of one size."""
    return _plain(coco.merge([dict(one), dict(other)], intersect=True))


def checked(rle: Any, *, size: Sequence[int], where: str) -> dict[str, Any]:
    """A mask from a file of somebody's predictions, as compressed run lengths.

    Raises:
        ValueError: it is no run-length mask of (height, width) = `size`; says where.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"{where}: a mask is an object with size [height, width] and counts, got {str(rle)[:40]!r}")
    if rle["size"] != list(size):
        raise ValueError(f"{where}: a mask of size {rle['size']} for an image of size {list(size)}")
    if not isinstance(rle["counts"], str | list):
        raise ValueError(f"{where}: counts is of type {type(rle['counts']).__name__}; allowed are a string or a list")
    try:
        return from_segmentation(rle, height=int(size[0]), width=int(size[1]))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _plain(rle: dict[str, Any]) -> dict[str, Any]:
    """What pycocotools gives, with plain JSON values."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
