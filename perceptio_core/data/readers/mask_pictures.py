"""Masks that lie as pictures beside the photographs: a PNG in which the object is whatever is neither black nor transparent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import MAX_PIXELS
from perceptio_core.data.rle import encode

_MOST_NUMBERS = 32  # a smoothed edge has more values


def read_mask(path: Path, *, max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """The mask as compressed run lengths, of the PNG's size.

    Black or transparent is background, as a person sees it: 0 and 1, 0 and 255, 16 bits, palettes and cut-outs are read alike.
    Numbers of several objects in one picture are not told apart: all of them are the object.

    Raises:
        ValueError: absent, no PNG, cut off, too large, or without a pixel of the object.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {max_pixels} are allowed")
            object_HW = _object(image)
    except FileNotFoundError as error:
        raise ValueError("no such file") from error
    except Exception as error:  # decoders of hostile bytes raise far more than OSError
        raise ValueError(str(error) if type(error) is ValueError else "it cannot be read as a PNG") from error
    if not object_HW.any():
        raise ValueError("all of it is black or transparent")
    return encode(object_HW)


def _object(image: Image.Image) -> NDArray[np.bool_]:
    """(H, W): where the picture is neither black nor transparent."""
    if image.mode.startswith("I"):  # 16 bits, of which a conversion to colours would drop the lower half
        return np.asarray(image) != 0
    pixels_HW4 = np.asarray(image.convert("RGBA"))
    return pixels_HW4[..., :3].any(axis=2) & (pixels_HW4[..., 3] != 0)


def is_numbered(path: Path) -> bool:
    """Whether a PNG that `read_mask` reads looks like numbers of several objects: a few values, several of them not 0."""
    with Image.open(path, formats=("PNG",)) as image:
        if image.mode not in ("L", "P") and not image.mode.startswith("I"):
            return False
        values = np.unique(np.asarray(image))
    return 1 < int(np.count_nonzero(values)) <= _MOST_NUMBERS
