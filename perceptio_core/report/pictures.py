"""Pictures for the page: masks drawn over images, depth maps in colour, all as data URIs."""

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

PREDICTED = (255, 64, 129)
MASKS = (PREDICTED, (50, 120, 230), (60, 180, 75), (240, 180, 30))
"""Colours of masks, in turn."""
TRUE = (0, 229, 255)
DEPTH_COLOURS = "inferno"
_LARGEST_PNG = 320


def shrink(image: Image.Image, *, side: int) -> Image.Image:
    """`image` in RGB, at most `side` pixels wide and high; a smaller one keeps its size."""
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def overlay(
    image: Image.Image, masks: Sequence[NDArray[np.bool_]], *, outline_HW: NDArray[np.bool_] | None = None
) -> Image.Image:
    """Masks as tints, a colour each, and one as an outline over `image`, in RGB; all are resized to it (nearest)."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    for number, mask_HW in enumerate(masks):
        tint = np.array(MASKS[number % len(MASKS)], np.float32)
        pixels = np.where(_fit(mask_HW, image)[..., None], 0.45 * pixels + 0.55 * tint, pixels)
    if outline_HW is not None:
        pixels = np.where(_outline(_fit(outline_HW, image))[..., None], np.array(TRUE, np.float32), pixels)
    return Image.fromarray(pixels.round().astype(np.uint8))


def depth_picture(depth_HW: NDArray[np.floating], *, size: tuple[int, int]) -> Image.Image:
    """A depth map (near = high, any scale) in colour, near = bright, stretched to `size` = (width, height).

    The colours span all but the lowest and highest hundredth of the pixels: a metric teacher sees some of them at hardly any
    distance, where inverse depth is a hundred times that of the rest, which would be black.
    """
    low, high = (float(value) for value in np.quantile(depth_HW, (0.01, 0.99)))
    scaled = np.clip((depth_HW - low) / (high - low), 0, 1) if high > low else np.zeros_like(depth_HW)
    colours = matplotlib.colormaps[DEPTH_COLOURS](scaled)[..., :3]
    return Image.fromarray((colours * 255).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def data_uri(image: Image.Image) -> str:
    """The image inside a URI: PNG for small ones, which JPEG would smear, and clear ones (RGBA); JPEG for photographs."""
    stream = io.BytesIO()
    if max(image.size) <= _LARGEST_PNG or image.mode == "RGBA":
        image.save(stream, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    image.convert("RGB").save(stream, format="JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _fit(mask_HW: NDArray[np.bool_], image: Image.Image) -> NDArray[np.bool_]:
    resized = Image.fromarray(mask_HW.astype(np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST)
    return np.asarray(resized) > 127


def _outline(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask's pixels that touch a pixel outside it (or the edge of the image) above, below, left or right."""
    padded = np.pad(mask_HW, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_HW & ~inner
