"""What depth codes hold: the depth order of the profile's HardBLINK test, read off maps by arithmetic in place of a model.

``python -m benchmarks.code_grid artifacts/mini`` (after ``make demo``) reads it off the teacher's map; off the map that the
codebook decodes from the teacher's codes, and from the codes that the model wrote in `evaluate`; and off the means of the
teacher's map over grids of cells, which is what codes say by their level alone.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.shards.markers import Marker
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.lookup import read_off
from perceptio_core.depth.teacher import Teacher
from perceptio_core.progress import track

GRIDS = (8, 10, 12, 16, 20)
Map = NDArray[np.floating]


def cell_means(depth_HW: Map, grid: int) -> Map:
    """The map with every pixel replaced by the mean of its cell, of grid x grid cells as equal as pixels allow."""
    rows_H, columns_W = (np.arange(side) * grid // side for side in depth_HW.shape)
    cells_HW = rows_H[:, None] * grid + columns_W
    sums = np.bincount(cells_HW.ravel(), depth_HW.ravel().astype(np.float64))
    return np.asarray((sums / np.bincount(cells_HW.ravel()))[cells_HW])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Print the share of right answers by number of points, and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, help="of a profile that has been evaluated")
    folder = parser.parse_args().artifacts
    test = folder / "sources" / "root" / "hardblink"
    teacher = Teacher.from_pretrained(folder / "foundations" / "depth_anything")
    codebook = DepthCodebook.from_pretrained(folder / "depth_codebook")
    questions = _rows(test / "markers.jsonl")
    answered = _rows(folder / "evaluate" / "full" / "predictions" / "hardblink.jsonl")
    written = {row["item_id"]: row for row in answered}
    right: dict[str, dict[int, list[bool]]] = {}
    for question in track(questions, total=len(questions), label="reading", unit="questions"):
        subset, number = question["subset"], question["question_id"]
        own = written[f"{subset}/{number}"]
        with Image.open(test / "unmarked" / f"blink{subset}pointscenter" / f"{number}.png") as image:
            pixels, (width, height) = teacher.pixels(image.convert("RGB")), image.size
        with torch.inference_mode():
            (depth_HW,) = map(np.asarray, teacher.inverse_depth([pixels], [(height, width)]))
            codes_2N = torch.stack([codebook.encode(codebook.normalise(depth_HW)[None])[0], torch.tensor(own["depth_codes"])])
            true_RR, own_RR = codebook.decode(codes_2N)[:, 0].numpy()
        maps = {
            "teacher's map": depth_HW,
            "teacher's codes, decoded": true_RR,
            "the model's own codes, decoded": own_RR,
            **{f"means over {grid} x {grid} cells": cell_means(depth_HW, grid) for grid in GRIDS},
        }
        points = [Marker(letter=p["letter"], x=p["x"], y=p["y"], inverse_depth=0.0) for p in question["points"]]
        for name, read_RR in maps.items():
            nearest = max(points, key=lambda point: read_off(read_RR, point, height=height, width=width))
            right.setdefault(name, {}).setdefault(subset, []).append(nearest.letter == own["expected"])
    for name, by_points in right.items():
        shares = [100 * float(np.mean(by_points[points])) for points in sorted(by_points)]
        print(f"{name:>30}  " + " / ".join(f"{share:5.1f}" for share in shares) + f"   mean {np.mean(shares):5.1f}")


if __name__ == "__main__":
    main()
