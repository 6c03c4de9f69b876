"""``perceptio predict``: one question about one image, answered by a trained checkpoint."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import open_image
from perceptio_core.model.inference import Perceptor

_MASK_COLOURS = ((230, 60, 50), (50, 120, 230), (60, 180, 75), (240, 180, 30))


def predict(*, image_path: Path, question: str, checkpoint: Path, out: Path) -> None:
    """Print the answer; write the masks drawn over the image and the depth map as pictures into `out`.

    Raises:
        ValueError: the image cannot be read, or there is no checkpoint; says what to do.
    """
    image = open_image(image_path)
    prediction = Perceptor.from_pretrained(checkpoint).predict([image], [question])[0]
    print(prediction.text)
    out.mkdir(parents=True, exist_ok=True)
    if prediction.masks:
        _save(overlay(image, prediction.masks), out / f"{image_path.stem}.masks.png")
    if prediction.depth_map is not None:
        _save(depth_picture(prediction.depth_map, size=image.size), out / f"{image_path.stem}.depth.png")
    for wanted, name in ((prediction.masks, "mask"), (prediction.depth_map is not None, "depth map")):
        if not wanted:
            print(f"no {name} in this answer", file=sys.stderr)


def overlay(image: Image.Image, masks: list[NDArray[np.bool_]]) -> Image.Image:
    """The image with every mask (H, W, as large as the image) laid over it, half transparent."""
    pixels_HW3 = np.asarray(image.convert("RGB")).astype(np.float32)
    for number, mask_HW in enumerate(masks):
        colour = np.array(_MASK_COLOURS[number % len(_MASK_COLOURS)], np.float32)
        pixels_HW3[mask_HW] = 0.5 * pixels_HW3[mask_HW] + 0.5 * colour
    return Image.fromarray(pixels_HW3.round().astype(np.uint8))


def depth_picture(depth_RR: NDArray[np.float32], *, size: tuple[int, int]) -> Image.Image:
    """A depth map in [-1, 1] as a gray picture of the given (width, height): white is near."""
    gray = ((np.clip(depth_RR, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(gray).resize(size, Image.Resampling.BILINEAR)


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path)
    print(f"wrote {path}", file=sys.stderr)
