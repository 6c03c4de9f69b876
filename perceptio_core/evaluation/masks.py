"""Set arithmetic of masks that stay compressed COCO run lengths: exact pixel counts, no picture is unpacked (pycocotools)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from perceptio_core.data.rle import Rle, area, encode, from_segmentation

_MAX_CHARACTERS = 7  # 35 bits: no run of a picture needs more


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

    The library reads on where run lengths do not fill their picture, to a wrong mask or a crash, so none is used unchecked.

    Raises:
        ValueError: it is no run-length mask of (height, width) = `size`; says where.
    """
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError(f"{where}: a mask is an object with size [height, width] and counts, got {str(rle)[:40]!r}")
    if list(rle["size"]) != list(size):
        raise ValueError(f"{where}: a mask of size {rle['size']} for an image of size {list(size)}")
    height, width = (int(side) for side in size)
    counts = rle["counts"]
    try:
        if isinstance(counts, list):
            return from_segmentation(rle, height=height, width=width)
        if not isinstance(counts, str):
            raise ValueError(f"counts is of type {type(counts).__name__}; allowed are a string or a list")
        runs = run_lengths(counts)
        if runs.min(initial=0) < 0 or int(runs.sum()) != height * width:
            raise ValueError(f"run lengths must be >= 0 with sum {height * width}")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return {"size": [height, width], "counts": counts}


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


def _plain(rle: dict[str, Any]) -> dict[str, Any]:
    """What pycocotools gives, with plain JSON values."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
