"""How unevenly a step's tokens lie on the GPUs: samples as they come, against `perceptio_core.data.loading.balance.deal`.

``python -m benchmarks.balance``: for samples as long as those of the real mix (`benchmarks.real_mix`), the tokens of the
heaviest GPU over the mean, and the tokens of the longest micro-batch. GPUs wait for the heaviest; memory is for the longest.

Then what rows of a fixed length would hold, each filled with as many of the step's samples as fit (first fit, the longest
first), and as many rows on every GPU: how full they are.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_mix import draw_lengths
from perceptio_core.data.loading.balance import deal
from perceptio_core.params.profile import load_profile


def main() -> None:
    """Print both ways for several numbers of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="perceptio-8b")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    params = load_profile(arguments.profile).variant("full")
    batch, mixture = params.batch_size, params.mixture.weights
    lengths = [length.tokens for length in draw_lengths(mixture, count=batch * arguments.steps, seed=0)]
    micro = batch // (params.processes * params.accumulation)
    for gpus in (2, 8, 32):
        shape = batch // (gpus * micro), gpus
        ways: dict[str, list[NDArray[np.int64]]] = {"as they come": [], "dealt": []}
        for start in range(0, len(lengths), batch):
            step = lengths[start : start + batch]
            parts = shape[0] * gpus
            ways["as they come"].append(np.array([sum(step[part::parts]) for part in range(parts)]).reshape(shape))
            dealt = np.array([sum(part) for part in deal(step, step, parts=parts)]).reshape(shape)
            dealt[1::2] = dealt[1::2, ::-1].copy()  # to and fro, as `training.loop` takes them
            ways["dealt"].append(dealt)
        for name, steps in ways.items():
            heaviest = np.mean([parts.sum(0).max() / parts.sum(0).mean() for parts in steps])
            longest = max(int(parts.max()) for parts in steps)
            print(f"{gpus:2} GPUs, {name:12}: the heaviest {heaviest:.3f} of the mean, micro-batch up to {longest} tokens")
    for capacity in (4096, 8192, 16384):
        rows = np.array([len(first_fit(lengths[start : start + batch], capacity)) for start in range(0, len(lengths), batch)])
        gpus = params.processes
        tokens = [sum(lengths) / (counts.sum() * capacity) for counts in (rows, np.ceil(rows / gpus) * gpus)]
        full = f"{tokens[0]:.3f} full; as many on each of {gpus} GPUs {tokens[1]:.3f}"
        print(f"rows of {capacity:5} tokens: {rows.mean():.1f} a step, {full}")


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Samples in rows of at most `capacity` tokens: each, the longest first, in the first row that has room for it."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        row = next((row for row in rows if sum(row) + length <= capacity), None)
        if row is None:
            rows.append(row := [])
        row.append(length)
    return rows


if __name__ == "__main__":
    main()
