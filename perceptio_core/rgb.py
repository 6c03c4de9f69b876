"""Pictures of any mode in RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, itself where it is that already; 16-bit gray is scaled to 8.

    Raises:
        ValueError: its pixels are floating-point numbers, or integers of more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: what white is, the file does not say")
    if image.mode.startswith("I"):
        gray_HW = np.asarray(image)
        low, high = int(gray_HW.min()), int(gray_HW.max())
        if not 0 <= low <= high < 1 << 16:
            raise ValueError(f"its gray values go from {low} to {high}; at most 16 bits are read")
        # 16-bit gray: Pillow's own conversion clips at 255 instead of scaling.
        return image.convert("I").point(lambda value: value * (1 / 256.0)).convert("L").convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
