"""Masks as compressed COCO run lengths: ``{"size": [height, width], "counts": ascii}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Rle = Mapping[str, Any]


def encode(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """A boolean mask as compressed run lengths with plain JSON values."""
    rle = coco.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Compressed run lengths as a boolean mask (height, width)."""
    return np.asarray(coco.decode(dict(rle)), dtype=bool)


def union(rles: Sequence[Rle], *, size: Sequence[int]) -> NDArray[np.bool_]:
    """The pixels in any of `rles`, as (height, width) = `size`; none gives an empty mask.

    Raises:
        ValueError: a mask has another size.
    """
    mask = np.zeros((int(size[0]), int(size[1])), dtype=bool)
    for rle in rles:
        if list(rle["size"]) != list(size):
            raise ValueError(f"a mask of size {list(rle['size'])} for an image of size {list(size)}")
        mask |= decode(rle)
    return mask


def overlap(predicted_HW: NDArray[np.bool_], truth_HW: NDArray[np.bool_]) -> tuple[int, int]:
    """Pixels in both and pixels in either, as exact integers."""
    return int(np.count_nonzero(predicted_HW & truth_HW)), int(np.count_nonzero(predicted_HW | truth_HW))
