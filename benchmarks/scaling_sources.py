"""What the stage `sources` holds in memory: files in the official layouts through the readers and `collect`.

``python -m benchmarks.scaling_sources`` writes them, collects each in a process of its own, and prints its seconds of processor
time and its peak of memory. There are as many records as the sizes say, and a tiny picture for every hundred of them.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perceptio_core.data.manifest.collect import collect
from perceptio_core.data.rle import encode
from perceptio_core.engine import Local
from perceptio_core.params.sources import DatasetParams

SIZES = (100_000, 1_000_000)
RECORDS_A_PICTURE = 100
HEIGHT, WIDTH = 48, 64
POLYGON = [float(value) for corner in range(32) for value in (8 + corner % 16, 4 + corner)]
TALK = "Some things, of which this says a little. " * 8


def main() -> None:
    """Print the table, or do one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="records (default: 10^5 and 10^6)")
    parser.add_argument("--kinds", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(step(arguments.step[0], Path(arguments.step[1]))))
        return
    print(
        f"| data set | {' | '.join(f'{size:,} records' for size in arguments.sizes)} |\n|---|{'---:|' * len(arguments.sizes)}"
    )
    for kind in arguments.kinds:
        cells = []
        for size in arguments.sizes:
            with tempfile.TemporaryDirectory() as folder:
                write_pictures(Path(folder), size)
                WRITERS[kind](Path(folder), size)
                command = [sys.executable, "-m", "benchmarks.scaling_sources", "--step", kind, folder]
                took = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                assert took["records"] == size, took
            cells.append(f"{took['seconds']:.0f} s, {took['peak_mib']:.0f} MiB")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def step(kind: str, folder: Path) -> dict[str, float]:
    """Collect one data set; seconds of processor time, peak MiB and records kept."""
    paths = {"coco": "coco.json", "gcg": "gcg.json", "llava": "llava.json", "refer": "refer"}
    dataset = DatasetParams(name=kind, kind=kind, path=paths[kind], split="train", images="pictures")  # type: ignore[arg-type]
    work, out = folder / "work", folder / "out"
    work.mkdir()
    out.mkdir()
    start = time.process_time()
    counts = collect([dataset], root=folder, work=work, journals=work, out=out, max_pixels=10**6, workers=1, engine=Local())
    seconds = time.process_time() - start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak_mib, "records": counts[f"source_{kind}"]}


def pictures(size: int) -> int:
    """How many pictures go with so many records."""
    return -(-size // RECORDS_A_PICTURE)


def write_pictures(folder: Path, size: int) -> None:
    """Different pictures by COCO's names."""
    (folder / "pictures").mkdir()
    for number in range(pictures(size)):
        pixels_HW3 = np.full((HEIGHT, WIDTH, 3), np.uint8(number >> 16))
        pixels_HW3[0, 0] = number >> 16, number >> 8 & 255, number & 255
        Image.fromarray(pixels_HW3).save(folder / "pictures" / name(number), format="PNG", compress_level=1)


def name(number: int) -> str:
    """Of a picture: PNG within, as one may find it."""
    return f"{number:012d}.jpg"


def write_list(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """A JSON list, row by row."""
    with path.open("w", encoding="utf-8") as stream:
        for place, row in enumerate(rows):
            stream.write("[" if place == 0 else ",\n")
            stream.write(json.dumps(row))
        stream.write("]\n")


def write_llava(folder: Path, size: int) -> None:
    """Conversations of two turns."""
    said = [{"from": "human", "value": "<image>\nWhat is there?"}, {"from": "gpt", "value": TALK}]
    said += [{"from": "human", "value": "And what else?"}, {"from": "gpt", "value": TALK}]
    count = pictures(size)
    write_list(folder / "llava.json", ({"id": str(n), "image": name(n % count), "conversations": said} for n in range(size)))


def write_gcg(folder: Path, size: int) -> None:
    """Captions with two phrases."""
    masks = [encode(np.arange(WIDTH) // 8 % 4 == part * np.ones((HEIGHT, 1), int)) for part in range(2)]
    groundings = {
        phrase: {"token_positives": place, "rle_masks": [mask]}
        for phrase, place, mask in zip(("A man", "a horse"), ([0, 5], [12, 19]), masks, strict=True)
    }
    same = {"caption": "A man rides a horse.", "groundings": groundings}
    count = pictures(size)
    write_list(folder / "gcg.json", ({"image_id": str(n), "file_name": name(n % count), **same} for n in range(size)))


def write_instances(path: Path, size: int, annotations: int) -> None:
    """Annotations spread over the pictures; each picture's are of different categories."""
    count = pictures(size)
    images = [{"id": n, "file_name": name(n), "height": HEIGHT, "width": WIDTH} for n in range(count)]
    categories = [{"id": n, "name": f"thing {n}"} for n in range(RECORDS_A_PICTURE)]
    same = {"iscrowd": 0, "area": 100.5, "bbox": [8.0, 4.0, 15.0, 31.0], "segmentation": [POLYGON]}
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": [')
        for n in range(annotations):
            row = {"id": n, "image_id": n % count, "category_id": n // count, **same}
            stream.write(f"{',' if n else ''}\n{json.dumps(row)}")
        stream.write("]}\n")


def write_coco(folder: Path, size: int) -> None:
    """A record for each annotation."""
    write_instances(folder / "coco.json", size, size)


def write_refer(folder: Path, size: int) -> None:
    """References with two sentences each."""
    (folder / "refer").mkdir()
    references = size // 2
    write_instances(folder / "refer/instances.json", size, references)
    count = pictures(size)
    rows = [
        {
            "ref_id": n,
            "ann_id": n,
            "image_id": n % count,
            "category_id": n // count,
            "file_name": f"COCO_train2014_{n % count:012d}_{n}.jpg",
            "split": "train",
            "sent_ids": [2 * n, 2 * n + 1],
            "sentences": [
                {"sent_id": i, "sent": f"thing {i} left", "raw": f"Thing {i}, left.", "tokens": ["thing", str(i), "left"]}
                for i in (2 * n, 2 * n + 1)
            ],
        }
        for n in range(references)
    ]
    (folder / "refer/refs(unc).p").write_bytes(pickle.dumps(rows, protocol=2))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "llava": write_llava,
    "gcg": write_gcg,
    "coco": write_coco,
    "refer": write_refer,
}


if __name__ == "__main__":
    main()
