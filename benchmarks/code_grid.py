"""How finely depth codes have to see: depth order read off the teacher's map, and off its means over coarser grids.

``python -m benchmarks.code_grid artifacts/mini`` asks the questions of the profile's HardBLINK test. No codebook and no model
that reads is in it: what a grid loses here, codes of that grid cannot say by their level alone.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

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


def main() -> None:
    """Print the share of right answers by number of points, and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, help="of a profile whose sources and foundations are made")
    folder = parser.parse_args().artifacts
    test = folder / "sources" / "root" / "hardblink"
    teacher = Teacher.from_pretrained(folder / "foundations" / "depth_anything")
    questions = [json.loads(line) for line in (test / "markers.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = {
        (points, row["question_id"]): row["text"]
        for points in (3, 4, 5)
        for row in map(
            json.loads,
            (test / "answers" / f"blink_{points}pointscenter_answers.jsonl").read_text(encoding="utf-8").splitlines(),
        )
    }
    right: dict[str, dict[int, list[bool]]] = {}
    for question in track(questions, total=len(questions), label="reading", unit="questions"):
        subset, number = question["subset"], question["question_id"]
        with Image.open(test / "unmarked" / f"blink{subset}pointscenter" / f"{number}.png") as image:
            pixels, size = teacher.pixels(image.convert("RGB")), (image.height, image.width)
        with torch.inference_mode():
            (depth_HW,) = teacher.inverse_depth([pixels], [size])
        depth_HW = np.asarray(depth_HW)
        for name, read_HW in {"teacher's map": depth_HW, **{f"{g} x {g}": cell_means(depth_HW, g) for g in GRIDS}}.items():
            nearest = max(question["points"], key=lambda point: float(read_HW[point["y"], point["x"]]))
            hits = right.setdefault(name, {}).setdefault(subset, [])
            hits.append(f"({nearest['letter']})" == answers[subset, number])
    for name, by_points in right.items():
        shares = [100 * float(np.mean(by_points[points])) for points in sorted(by_points)]
        print(f"{name:>13}  " + " / ".join(f"{share:5.1f}" for share in shares) + f"   mean {np.mean(shares):5.1f}")


if __name__ == "__main__":
    main()
