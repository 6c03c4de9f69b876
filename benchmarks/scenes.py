"""How many scenes a second one core renders and writes, and what each part costs: ``python -m benchmarks.scenes``."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from perceptio_core.params.render import RenderParams
from perceptio_core.scenes.expressions import referring_expressions
from perceptio_core.scenes.language import foundation_question
from perceptio_core.scenes.layouts import refer
from perceptio_core.scenes.layouts.scenes import jpeg_bytes
from perceptio_core.scenes.render import render
from perceptio_core.scenes.view import look
from perceptio_core.scenes.world import sample_scene


def main() -> None:
    """Print a line for each part: milliseconds of processor time for one scene, and scenes a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    count = parser.parse_args().scenes
    worlds = [sample_scene(seed) for seed in range(count)]
    renderings = [render(world) for world in worlds]
    views = [look(world, rendering) for world, rendering in zip(worlds, renderings, strict=True)]
    rng = np.random.default_rng(0)

    def refer_to_all(i: int) -> None:
        for target in views[i].objects:
            referring_expressions(view=views[i], target=target, rng=rng, count=3)

    _measure("sample a world", count, lambda i: sample_scene(i))
    _measure("render it", count, lambda i: render(worlds[i]))
    _measure("JPEG", count, lambda i: jpeg_bytes(renderings[i].image))
    _measure("what is visible", count, lambda i: look(worlds[i], renderings[i]))
    _measure("3 expressions for every object", count, refer_to_all)
    _measure("a question", count, lambda i: foundation_question(worlds[i], renderings[i], rng))
    params = RenderParams(train=count, val=1, test=1)
    with tempfile.TemporaryDirectory() as folder:
        _measure("all of a training scene, written", count, lambda i: refer.make(params, Path(folder), i))


def _measure(label: str, count: int, work: Callable[[int], object]) -> None:
    work(0)
    start = time.process_time()
    for i in range(count):
        work(i)
    seconds = (time.process_time() - start) / count
    print(f"{label:34} {1000 * seconds:7.2f} ms {1 / seconds:8.0f} /s")


if __name__ == "__main__":
    main()
