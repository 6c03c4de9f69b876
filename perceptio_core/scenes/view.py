"""What can be seen of a world in its picture: the only thing its language may speak about (ours).

Language knows image-plane facts (shape, colour, material, place) and nothing of the third dimension. The physical size
of an object is left out on purpose: together with the size in the picture it would give the depth away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perceptio_core.scenes.render import Rendering
from perceptio_core.scenes.world import World

VISIBLE_PIXELS = 40  # fewer pixels at 128 x 128 cannot be told apart; scales with the picture's area
GRID = 8  # columns and rows of the coarse grid in which places are named


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """An object as it appears. `x`, `y`: centroid of its visible pixels in 0..1 of the picture (right, down); `pixels`: their
    number; `instance`: its number in the instance map, which is 1 + its place in `world.objects`.
    """

    instance: int
    shape: str
    color: str
    material: str
    x: float
    y: float
    pixels: int

    @property
    def cell(self) -> tuple[int, int]:
        """(column, row) of the grid cell of the centroid, each 0..GRID-1, from the upper left."""
        return int(self.x * GRID), int(self.y * GRID)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """`objects`: those seen well enough to be spoken of; `fragments`: those of which only a few pixels show. A statement
    must hold whether or not one notices the fragments. `owners` (GRID, GRID): the instance that clearly owns the cell at
    [row, column], or 0.
    """

    objects: tuple[Seen, ...]
    fragments: tuple[Seen, ...]
    owners: np.ndarray


def look(world: World, rendering: Rendering) -> View:
    """The view of a rendered world; objects in the order of `world.objects`, platforms left out."""
    instances_HW = rendering.instances
    height, width = instances_HW.shape
    count = len(world.objects) + 1
    # pixels of each instance in each row and in each column; their sums and means are exact
    by_row = _table(instances_HW, np.arange(height)[:, None], height, count)
    by_column = _table(instances_HW, np.arange(width), width, count)
    pixels = by_row.sum(axis=0)
    sum_x = (np.arange(width) + 0.5) @ by_column / width
    sum_y = (np.arange(height) + 0.5) @ by_row / height
    enough = VISIBLE_PIXELS * height * width / 128**2
    objects: list[Seen] = []
    fragments: list[Seen] = []
    for instance, thing in enumerate(world.objects, start=1):
        if thing.role != "object" or not pixels[instance]:
            continue
        seen = Seen(
            instance=instance,
            shape=thing.shape,
            color=thing.color,
            material=thing.material,
            x=float(sum_x[instance] / pixels[instance]),
            y=float(sum_y[instance] / pixels[instance]),
            pixels=int(pixels[instance]),
        )
        (objects if seen.pixels >= enough else fragments).append(seen)
    return View(
        objects=tuple(objects), fragments=tuple(fragments), owners=_owners(instances_HW, count, [o.instance for o in objects])
    )


def _owners(instances_HW: np.ndarray, count: int, spoken: Sequence[int]) -> np.ndarray:
    """The object that covers a quarter of a cell at least and three times as much of it as any other; 0 where none does."""
    height, width = instances_HW.shape
    cells_HW = (np.arange(height) * GRID // height)[:, None] * GRID + np.arange(width) * GRID // width
    table = _table(instances_HW, cells_HW, GRID * GRID, count)
    share = table / table.sum(axis=1, keepdims=True)
    share[:, 0] = 0
    best = share.argmax(axis=1)
    lead = np.take_along_axis(share, best[:, None], axis=1)[:, 0]
    share[np.arange(GRID * GRID), best] = 0
    clear = (lead >= 0.25) & (lead >= 3 * share.max(axis=1)) & np.isin(best, spoken)
    return np.where(clear, best, 0).reshape(GRID, GRID)


def _table(instances_HW: np.ndarray, groups: np.ndarray, group_count: int, count: int) -> np.ndarray:
    """(groups, instances) numbers of pixels; `groups` broadcasts over the picture."""
    joint = groups * count + instances_HW
    return np.bincount(joint.ravel(), minlength=group_count * count).reshape(group_count, count)
