"""Opening images of any origin: a bad one is a `ValueError` that names the file and says why, never a crash."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from perceptio_core.rgb import to_rgb

MAX_PIXELS = 64_000_000
"""Default limit on width x height: a 64 megapixel photograph is 200 MB when decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read. Others are refused: Pillow's reader of PostScript, for one, starts another program."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An image and whether the file's own bytes show it: RGB, upright, in a format that every reader knows.

    `extension` is "jpg" or "png" where they do, else None.
    """

    image: Image.Image
    extension: str | None


def open_image(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image of any mode to RGB, upright by its EXIF orientation.

    Args:
        source: a file or an encoded image.
        max_pixels: refused above this, by the header, before anything is decoded.

    Raises:
        ValueError: absent, unreadable, cut off, or too large; names the file.
    """
    return open_with_format(source, max_pixels=max_pixels).image


def open_with_format(source: Path | bytes, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Opened:
    """The same, together with whether the original bytes may stand for the image as it is.

    Args:
        source: a file or an encoded image.
        max_pixels: refused above this, by the header, before anything is decoded.
        name: what errors call the image; by default the path.

    Raises:
        ValueError: absent, unreadable, cut off, or too large; names the file.
    """
    if name is None:
        name = str(source) if isinstance(source, Path) else f"an encoded image of {len(source)} bytes"
    try:
        if isinstance(source, Path) and source.exists() and not source.is_file():  # to read a pipe or a device may never end
            raise ValueError("no plain file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF; and of large images, for which max_pixels is the limit
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {max_pixels} are allowed")
                turn = _UPRIGHT.get(_orientation(image))
                plain = turn is None and image.mode == "RGB" and getattr(image, "n_frames", 1) == 1
                extension = {"JPEG": "jpg", "PNG": "png"}.get(image.format or "") if plain else None
                upright = to_rgb(image)
                if turn is not None:
                    upright = upright.transpose(turn)
                return Opened(image=upright, extension=extension)
    except Exception as error:  # decoders of hostile bytes raise far more than OSError
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: {what}") from error


def is_picture(path: Path) -> bool:
    """Whether a file is an image of a format that is read, by its content and not by its name; nothing is decoded."""
    try:
        if not path.is_file():
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF and of large images, as when it is opened
            with Image.open(path, formats=FORMATS):
                return True
    except Exception:  # decoders of hostile bytes raise far more than OSError
        return False


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it cannot be read: damaged EXIF is no damaged picture."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Size in pixels of the upright image, the sha256 (hex) of the file, and `difference_hash` (hex) of the picture."""

    width: int
    height: int
    sha256: str
    look: str


def inspect_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Read and decode an image file once, to know that it is whole.

    Raises:
        ValueError: absent, unreadable, cut off, or too large; names the file.
    """
    try:
        if path.exists() and not path.is_file():  # to read a pipe or a device may never end
            raise ValueError(f"{path}: no plain file")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    image = open_with_format(content, max_pixels=max_pixels, name=str(path)).image
    digest = hashlib.sha256(content).hexdigest()
    return ImageFacts(width=image.width, height=image.height, sha256=digest, look=difference_hash(image).hex())


def difference_hash(image: Image.Image) -> bytes:
    """What a picture looks like, in 256 bits: whether each of 16 x 16 patches is brighter than its left neighbour.

    Copies at other sizes and qualities differ in few bits (`perceptio_core.data.held_out` says how few).
    """
    gray_HW = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX))
    return np.packbits(gray_HW[:, 1:] > gray_HW[:, :-1]).tobytes()
