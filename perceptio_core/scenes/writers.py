"""Writing the whole rendered world under one folder, in the official layouts (ours).

The work is cut into chunks of items. A chunk writes its pictures, then its rows to ``.parts/`` in one move; a run that was
killed is taken up at the first chunk without rows. At the end the rows are joined in order, so the files do not depend on
the number of workers. ``world.json`` is written last and marks a finished world.
"""

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from perceptio_core.params.render import RenderParams
from perceptio_core.progress import track
from perceptio_core.scenes.layouts import hardblink, mmbench, mme, refer, refer_new, seedbench
from perceptio_core.tied import tie_worker

CHUNK = 100  # items that a killed run loses at most, for each worker

Chunk = tuple[str, int, int]  # layout, first item, item after the last


class Layout(Protocol):
    """What each of `layouts` offers."""

    def items(self, params: RenderParams) -> int:
        """How many items the parameters ask for."""

    def make(self, params: RenderParams, root: Path, number: int) -> dict[str, Any]:
        """Write the pictures of an item; its row, which JSON can hold."""

    def assemble(self, params: RenderParams, root: Path, rows: list[dict[str, Any]]) -> None:
        """Write the index files from all rows in order."""


LAYOUTS: dict[str, Layout] = {
    "refcoco": refer,
    "hardblink": hardblink.HARDBLINK,
    "mmbench": mmbench,
    "seedbench": seedbench,
    "mme": mme,
    "refcoco_new": refer_new,
    "hardblink_new": hardblink.NEW,
    "hardblink_pairs": hardblink.PAIRS,
}


def write_world(root: Path, *, params: RenderParams, workers: int) -> None:
    """Render and write refcoco, llava, hardblink, mmbench, seedbench and mme, and the further tests that the parameters ask
    for, under `root`; nothing is done twice.

    Args:
        root: the folder to write; empty, absent, or left by a killed run with the same parameters.
        params: how much, how large, and with which seed.
        workers: processes; 1 works in this one.

    Raises:
        ValueError: the folder holds something else, or a world of other parameters; or `workers` is less than 1.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}: allowed is 1 or more")
    root.mkdir(parents=True, exist_ok=True)
    stamp = params.stamp()
    parts, finished = root / ".parts", root / "world.json"
    if finished.is_file() and finished.read_text() == stamp:
        return
    started = parts / "params.json"
    if any(root.iterdir()) and not (started.is_file() and started.read_text() == stamp):
        raise ValueError(f"{root}: holds something other than an unfinished world of these parameters; give an empty folder")
    parts.mkdir(exist_ok=True)
    started.write_text(stamp)
    chunks = [
        (name, start, min(start + CHUNK, layout.items(params)))
        for name, layout in LAYOUTS.items()
        for start in range(0, layout.items(params), CHUNK)
    ]
    left = [chunk for chunk in chunks if not _part(root, chunk).is_file()]
    total = sum(stop - start for _, start, stop in left)
    for _ in track(_work_off(root, params, left, workers), total=total, label="rendering", unit="scenes"):
        pass
    for name, layout in LAYOUTS.items():
        if not layout.items(params):
            continue
        rows = [row for chunk in chunks if chunk[0] == name for row in json.loads(_part(root, chunk).read_text())]
        layout.assemble(params, root, rows)
    finished.write_text(stamp)
    shutil.rmtree(parts)


def _part(root: Path, chunk: Chunk) -> Path:
    return root / ".parts" / f"{chunk[0]}-{chunk[1]:07d}.json"


def _work_off(root: Path, params: RenderParams, chunks: list[Chunk], workers: int) -> Iterator[None]:
    """Make the chunks; yields once for each item when its chunk is done."""
    if workers == 1:
        for chunk in chunks:
            yield from [None] * _make_chunk(root, params, chunk)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=tie_worker) as pool:
        for done in as_completed([pool.submit(_make_chunk, root, params, chunk) for chunk in chunks]):
            yield from [None] * done.result()


def _make_chunk(root: Path, params: RenderParams, chunk: Chunk) -> int:
    """Make the items of a chunk; gives their number."""
    name, start, stop = chunk
    rows = [LAYOUTS[name].make(params, root, number) for number in range(start, stop)]
    part = _part(root, chunk)
    unfinished = part.with_suffix(".tmp")
    unfinished.write_text(json.dumps(rows))
    unfinished.replace(part)
    return len(rows)
