"""Set arithmetic of masks that are kept as compressed COCO run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from perceptio_core.data.rle import Rle, decode


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
