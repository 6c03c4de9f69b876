"""Scenes rendered once and kept on disk for the pretraining of mini's foundation models (ours)."""

import json
import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from perceptio_core.scenes.render import render
from perceptio_core.scenes.world import World, sample_scene, split_seed
from perceptio_core.tied import tie_worker

log = logging.getLogger(__name__)
CACHE = Path(".work/scenes")
CHUNK = 500
# Pretraining scenes begin here, far above the scenes of the demo: no foundation model has seen a scene of the
# pipeline's train, val or test worlds.
FIRST_INDEX = 10_000_000


@dataclass(frozen=True, kw_only=True)
class SceneCache:
    """Memory-mapped renderings of `n` scenes: images (n, H, W, 3) uint8, depth (n, H, W) float16 in metres,
    instances (n, H, W) uint8. The world of scene i is drawn again from its seed by `world(i)`.
    """

    split: str
    size: int
    images: np.ndarray
    depth: np.ndarray
    instances: np.ndarray

    def world(self, index: int) -> World:
        """World of scene `index`."""
        return pretraining_world(self.split, index, self.size)


@lru_cache(maxsize=64)  # what a batch asks again and again
def pretraining_world(split: str, index: int, size: int) -> World:
    """World of pretraining scene `index` of a split."""
    return sample_scene(split_seed(split, FIRST_INDEX + index), size)


def scene_cache(split: str, count: int, size: int = 128) -> SceneCache:
    """The first `count` pretraining scenes of a split ("train" or "val"), rendered on first use below `.work/scenes`."""
    folder = CACHE / f"{split}-{size}-{count}"
    done = folder / "done.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shapes = {"images": (size, size, 3), "depth": (size, size), "instances": (size, size)}
        types = {"images": np.uint8, "depth": np.float16, "instances": np.uint8}
        arrays = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=types[name], shape=(count, *shape))
            for name, shape in shapes.items()
        }
        starts = range(0, count, CHUNK)
        with ProcessPoolExecutor(initializer=tie_worker) as pool:
            for start, chunk in zip(starts, pool.map(partial(_chunk, split, count, size), starts), strict=True):
                for name, array in arrays.items():
                    array[start : start + len(chunk[name])] = chunk[name]
                log.info("scenes %s: %d of %d", split, start + len(chunk["images"]), count)
        for array in arrays.values():
            array.flush()
        done.write_text(json.dumps({"split": split, "count": count, "size": size}))
    loaded = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "depth", "instances")}
    return SceneCache(split=split, size=size, **loaded)


def _chunk(split: str, count: int, size: int, start: int) -> dict[str, np.ndarray]:
    renderings = [
        render(sample_scene(split_seed(split, FIRST_INDEX + i), size)) for i in range(start, min(start + CHUNK, count))
    ]
    return {
        "images": np.stack([r.image for r in renderings]),
        "depth": np.stack([r.depth for r in renderings]).astype(np.float16),
        "instances": np.stack([r.instances for r in renderings]),
    }
