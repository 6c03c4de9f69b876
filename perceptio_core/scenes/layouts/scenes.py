"""Scenes by block and number, their random streams, and pictures written whole (ours)."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.render import Rendering, render
from perceptio_core.scenes.view import View, look
from perceptio_core.scenes.world import USUAL, Domain, World, sample_scene, split_seed

WORLDS = 1 << 22  # scenes of a split set aside for each seed of the parameters
BLOCK = 1 << 18  # scenes set aside for each data set within them
# which block of its split a data set draws its scenes from; benchmarks draw from the test split
BLOCKS = {
    "refcoco": 0,
    "hardblink_3": 1,
    "hardblink_4": 2,
    "hardblink_5": 3,
    "mmbench": 4,
    "seedbench": 5,
    "mme_existence": 6,
    "mme_count": 7,
    "mme_position": 8,
    "mme_color": 9,
    "mme_numerical_calculation": 10,
    "hardblink_pairs_3": 11,
    "hardblink_pairs_4": 12,
    "hardblink_pairs_5": 13,
}
TRIES = 200  # scenes that are looked through for one benchmark item before it is given up, unless the benchmark says otherwise
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A rendered scene, what can be seen of it, and the random stream for what is said about it."""

    world: World
    rendering: Rendering
    view: View
    rng: np.random.Generator


def scene(params: RenderParams, *, split: str, block: str, number: int, domain: Domain = USUAL) -> Scene:
    """Scene `number` (0..BLOCK-1) of a data set's block in a split, drawn from a domain: another one, other scenes.

    Raises:
        ValueError: the number lies outside of the block.
    """
    if not 0 <= number < BLOCK:
        raise ValueError(f"scene {number} of {block}: allowed are 0..{BLOCK - 1}")
    seed = split_seed(split, params.world * WORLDS + BLOCKS[block] * BLOCK + number)
    world = sample_scene(seed, params.size, domain=domain)
    rendering = render(world)
    rng = np.random.default_rng((seed, 2))  # 0 is the world's own stream, 1 the sensor noise of its rendering
    return Scene(world=world, rendering=rendering, view=look(world, rendering), rng=rng)


def suitable(
    params: RenderParams,
    *,
    block: str,
    number: int,
    find: Callable[[Scene], Found | None],
    domain: Domain = USUAL,
    tries: int = TRIES,
) -> tuple[Scene, Found]:
    """The first of the `tries` test scenes of item `number` of a benchmark in which `find` finds something, and what.

    Raises:
        RuntimeError: none of them suits.
    """
    for attempt in range(tries):
        one = scene(params, split="test", block=block, number=number * tries + attempt, domain=domain)
        found = find(one)
        if found is not None:
            return one, found
    raise RuntimeError(f"{block}: none of {tries} scenes suits item {number}")


def jpeg_bytes(image_HW3: np.ndarray) -> bytes:
    """A picture as JPEG of quality 95, colour at full resolution: the objects are only tens of pixels wide."""
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, format="JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def write_jpeg(path: Path, image_HW3: np.ndarray) -> None:
    """Write a picture as `jpeg_bytes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg_bytes(image_HW3))


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG", compress_level=6)
