"""Opening images of any origin: a bad one is a `ValueError` that names the file and says why, never a crash.

There is one way to open a picture, so what one stage accepts every other one does, too.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from perceptio_core.rgb import to_rgb

MAX_PIXELS = 100_000_000
"""Default limit on width x height: a 100 megapixel photograph is 300 MB when decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read. Others are refused: Pillow's reader of PostScript, for one, starts another program."""

_BEGINNINGS: tuple[tuple[str, int, bytes], ...] = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("WEBP", 8, b"WEBP"),
    ("GIF", 0, b"GIF8"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),  # BigTIFF
    ("TIFF", 0, b"MM\0+"),
    ("PBM", 0, b"P1"),
    ("PBM", 0, b"P4"),
    ("PGM", 0, b"P2"),
    ("PGM", 0, b"P5"),
    ("PPM", 0, b"P3"),
    ("PPM", 0, b"P6"),
    ("AVIF", 4, b"ftypavif"),
    ("HEIC", 4, b"ftyphei"),
    ("HEIC", 4, b"ftypmif1"),
    ("JPEG 2000", 0, b"\0\0\0\x0cjP  "),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("ICO", 0, b"\0\0\x01\0"),
    ("PSD", 0, b"8BPS"),
    ("EPS", 0, b"%!PS"),
    ("PDF", 0, b"%PDF"),
    ("SVG", 0, b"<svg"),
    ("HTML", 0, b"<!DOCTYPE html"),  # what a server sent in place of the picture
    ("HTML", 0, b"<html"),
    ("a pointer of Git LFS", 0, b"version https://git-lfs"),
    ("ZIP", 0, b"PK\x03\x04"),
)
_START = 32  # bytes: more than any beginning
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")

_ORIENTATION = 0x0112
_SIDEWAYS = range(5, 9)
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
    """An image: RGB, upright; and what the file's own bytes are.

    `extension` is "jpg" or "png" where they show the image as it is in a format that every reader knows, else None.
    `mode` is their mode in Pillow's words, such as "L" or "P".
    """

    image: Image.Image
    extension: str | None
    mode: str


def is_picture(file: Path) -> bool:
    """Whether a file is a picture in one of `FORMATS`, by how its content begins, whatever its name; it may be damaged.

    False for what is no plain file (a folder, a pipe, a link to nothing) or cannot be read.
    """
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            return kind_of(stream.read(_START)) in FORMATS
    except OSError:
        return False


def kind_of(content: bytes) -> str | None:
    """What a file is by its first 32 bytes: one of `FORMATS`, another format that people have pictures in, or None."""
    # A text may begin with BM, too; the size of a bitmap's header is below 256.
    if content.startswith(b"BM") and content[15:18] == b"\0\0\0":
        return "BMP"
    return next((kind for kind, place, begins in _BEGINNINGS if content.startswith(begins, place)), None)


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
    """The same, together with what the original bytes are.

    Args:
        source: a file or an encoded image.
        max_pixels: refused above this, by the header, before anything is decoded.
        name: what errors call the image; by default the path.

    Raises:
        ValueError: absent, unreadable, cut off, or too large; names the file.
    """
    with _header(source, max_pixels=max_pixels, name=name) as image:
        mode, format_, still = image.mode, image.format, getattr(image, "n_frames", 1) == 1
        image.load()  # turns a TIFF by its orientation, and takes that out; others Pillow leaves as they are
        turn = _UPRIGHT.get(_orientation(image))
        image.info.pop("exif", None)  # or whoever turns pictures by it would turn this one again
        upright = to_rgb(image)
        if turn is not None:
            upright = upright.transpose(turn)
        shown = turn is None and mode == "RGB" and still
        extension = {"JPEG": "jpg", "PNG": "png"}.get(format_ or "") if shown else None
        return Opened(image=upright, extension=extension, mode=mode)


def upright_size(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height that `open_image` gives, by the header alone.

    Raises:
        ValueError: absent, no picture, or too large; names the file.
    """
    with _header(source, max_pixels=max_pixels, name=None) as image:
        width, height = image.size
        turned = image.format != "TIFF" and _orientation(image) in _SIDEWAYS  # a TIFF has its upright size from the start
        return (height, width) if turned else (width, height)


@contextmanager
def _header(source: Path | bytes, *, max_pixels: int, name: str | None) -> Iterator[Image.Image]:
    """An image whose header is read; any error in the block is a `ValueError` that names it."""
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
                yield image
    except Exception as error:  # decoders of hostile bytes raise far more than OSError
        raise ValueError(f"{name}: {_reason(error, source)}") from error


def _reason(error: Exception, source: Path | bytes) -> str:
    """Why an image cannot be opened, for a person, and the same words whenever the bytes are the same."""
    if isinstance(error, UnidentifiedImageError):
        return _unknown(source)
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    if type(error) is ValueError:
        return _ADDRESS.sub("...", str(error))
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which no setting allows"
    return _ADDRESS.sub("...", f"damaged or cut off: {str(error) or type(error).__name__}")


def _unknown(source: Path | bytes) -> str:
    """What stands where a picture should be."""
    allowed = f"allowed are {', '.join(FORMATS)}"
    if isinstance(source, Path):
        with source.open("rb") as stream:
            start = stream.read(_START)
    else:
        start = source[:_START]
    if not start:
        return "the file is empty"
    kind = kind_of(start)
    if kind is None:
        return f"no picture; {allowed}"
    return f"damaged or cut off: a {kind} whose header cannot be read" if kind in FORMATS else f"{kind} is not read; {allowed}"


def _orientation(image: Image.Image) -> int:
    """Take out the EXIF orientation; 1 (upright) where there is none, or EXIF is damaged, which is no damaged picture."""
    try:
        return int(image.getexif().pop(_ORIENTATION, 1))
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

    Copies at other sizes and qualities differ in few bits (`perceptio_core.data.manifest.held_out` says how few).
    """
    gray_HW = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX))
    return np.packbits(gray_HW[:, 1:] > gray_HW[:, :-1]).tobytes()
