"""Tiles against InternVL's own rule, written out here with Pillow alone, over odd sizes, to the bit.

The rule (InternVL's published `dynamic_preprocess` and `build_transform`): of all grids of 1 to N tiles, by rising number of
tiles, the one whose aspect ratio is nearest to the picture's; of equally near ones the later, as long as the picture has more
than half of its pixels; the picture resized to the grid (bicubic, Pillow's default), cut row by row, and, where there is more
than one tile, the picture resized to one tile behind them. Pixels are divided by 255 and normalised by ImageNet's mean and
deviation.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor
from transformers import GotOcr2ImageProcessor

from perceptio_core.model.processing import PerceptioProcessor
from tiny import tiny_perceptio

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = [
    *[(1, 1), (1, 500), (3, 3), (500, 1), (3, 40), (32, 32), (33, 31), (31, 33), (64, 32), (100, 77)],
    *[(640, 426), (426, 640), (481, 321), (375, 500), (336, 336), (300, 41), (41, 300), (800, 600), (1023, 767)],
    *[(250, 200), (96, 64), (144, 96), (999, 333), (217, 1000)],
]


def original_tiles(image: Image.Image, *, side: int, most: int) -> list[Image.Image]:
    grids = sorted(
        ((columns, rows) for columns in range(1, most + 1) for rows in range(1, most + 1) if columns * rows <= most),
        key=lambda grid: grid[0] * grid[1],
    )
    aspect, best, nearest = image.width / image.height, (1, 1), float("inf")
    for columns, rows in grids:
        distance = abs(aspect - columns / rows)
        if distance < nearest:
            nearest, best = distance, (columns, rows)
        elif distance == nearest and image.width * image.height > 0.5 * side * side * columns * rows:
            best = (columns, rows)
    columns, rows = best
    whole = image.resize((side * columns, side * rows))
    corners = [(side * (n % columns), side * (n // columns)) for n in range(columns * rows)]
    tiles = [whole.crop((left, top, left + side, top + side)) for left, top in corners]
    return tiles if len(tiles) == 1 else [*tiles, image.resize((side, side))]


def noise(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(width * 10007 + height)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> PerceptioProcessor:
    return tiny_perceptio(tmp_path_factory.mktemp("tiny"))[1]


def tiled(base: PerceptioProcessor, *, most: int, side: int, **normalised: list[float]) -> PerceptioProcessor:
    parts = ("tokenizer", "video_processor", "image_seq_length", "chat_template")
    return PerceptioProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": side, "width": side}, **normalised),
        **{part: getattr(base, part) for part in parts},
        config=base.config.to_dict() | {"max_tiles": most},
    )


@pytest.mark.parametrize(("side", "most"), [(32, 1), (32, 4), (32, 12), (448, 6)])
def test_pixel_values_are_internvls_to_the_bit(base: PerceptioProcessor, side: int, most: int) -> None:
    """Equal in every pixel of every tile of `SIZES`; the torchvision backend, by which it was given, is up to 0.39 off."""
    processor = tiled(base, most=most, side=side, image_mean=MEAN.tolist(), image_std=STD.tolist())
    images = [noise(*size) for size in SIZES]
    pixels, counts = processor._pixels(images)
    tiles = [original_tiles(image, side=side, most=most) for image in images]
    assert counts == [len(rows) for rows in tiles]
    assert len({*counts}) > (most > 1)
    normalise = Compose([ToTensor(), Normalize(MEAN.tolist(), STD.tolist())])
    assert torch.equal(pixels, torch.stack([normalise(tile) for rows in tiles for tile in rows]))
