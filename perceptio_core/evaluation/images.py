"""Opening a benchmark's image: a bad one is a `ValueError` that says why, never a crash or a full memory."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


def open_image(source: Path | bytes, *, max_pixels: int) -> Image.Image:
    """Decode an image to RGB, upright by its EXIF orientation.

    Args:
        source: a file or an encoded image.
        max_pixels: refused above this, by the header, before anything is decoded.

    Raises:
        ValueError: absent, unreadable, cut off, or too large.
    """
    name = str(source) if isinstance(source, Path) else f"an encoded image of {len(source)} bytes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit here
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(f"{name}: {image.width} x {image.height} pixels, at most {max_pixels} are allowed")
                return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error
