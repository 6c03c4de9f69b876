"""How the data stages' bookkeeping grows: fake entries through manifest, plan, indices and join, without any picture.

``python -m benchmarks.scaling`` runs every step at every size in a process of its own, so that its peak of memory is its own,
and prints its seconds of processor time and MiB. ``--images 1e6 1e9`` prints what a real data set of so many images would take
(`benchmarks.scaling_plan`). What the stage `sources` does before is measured by `benchmarks.scaling_sources`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from perceptio_core.data.images import ImageFacts
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.manifest.collect import check_images
from perceptio_core.data.manifest.image_table import Catalogue
from perceptio_core.data.manifest.manifest import RECORDS, ImageRow, read_images, read_records, write_images, write_records
from perceptio_core.data.records import Record
from perceptio_core.data.shards import tars
from perceptio_core.data.shards.plan import Plan, write_plan
from perceptio_core.depth import store
from perceptio_core.depth.store import DepthRow
from perceptio_core.params.joint_shards import JointShardsParams

SIZES = (10_000, 100_000, 1_000_000)
PARAMS = JointShardsParams(
    seed=0,
    images_per_shard=1000,
    referring_per_image=None,
    expressions_per_conversation=5,
    conversation_per_image=None,
    markers_per_image=0,
    marker_counts=(2,),
    comparisons_per_marker_question=0,
    depth_map_share=0,
    workers=1,
)
MAPS_A_SHARD = 2048
MASK = "PPYo1" * 40
"""As long as the compressed RLE of an object of COCO: some 200 characters."""


def key(number: int) -> str:
    """Image keys that ascend."""
    return f"coco/{number:012d}"


def path(number: int) -> str:
    """Of the image file."""
    return f"coco/train2017/{number:012d}.jpg"


def images(count: int) -> Iterator[ImageRow]:
    """Fake images, one in twenty of the split val."""
    for number in range(count):
        yield ImageRow(
            image_key=key(number),
            path=path(number),
            width=640,
            height=480,
            sha256=f"{number:064x}",
            split="train" if number % 20 else "val",
        )


def records(count: int) -> Iterator[Record]:
    """Two records an image, a data set after the other as in a real manifest."""
    for number in range(count):
        expression = f"the thing with the number {number}"
        yield Record(
            record_id=f"coco/{number}/1",
            image=path(number),
            image_key=key(number),
            split="train" if number % 20 else "val",
            task="referring",
            turns=((f"Please segment {expression} in this image.", "Sure, it is [SEG]."),),
            expression=expression,
            masks=({"size": [480, 640], "counts": MASK},),
            source="coco",
        )
    for number in range(count):
        yield Record(
            record_id=f"llava/{number}",
            image=path(number),
            image_key=key(number),
            split="train" if number % 20 else "val",
            task="conversation",
            turns=(("What is in the picture?", "Some things, of which this says a little. " * 5),),
            source="llava",
        )


def write_the_manifest(folder: Path, count: int) -> None:
    """What `sources` does at its end."""
    write_records(folder / RECORDS, records(count), named=folder)
    write_images(folder, images(count))


def read_the_manifest(folder: Path, count: int) -> None:
    """All rows, one after the other."""
    assert sum(1 for _ in read_images(folder)) == count
    assert sum(1 for _ in read_records(folder / RECORDS)) == 2 * count


class Told:
    """An engine that looks at no picture: what is left is what the stage's own process does for each."""

    def map(self, make: Any, units: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Facts that differ from picture to picture."""
        del make
        for unit in units:
            yield unit, [(path, [149_000, 1], self._facts(path)) for path in unit]

    def _facts(self, path: str) -> ImageFacts:
        content = hashlib.sha256(path.encode()).hexdigest()
        return ImageFacts(width=640, height=480, sha256=content, look=content[:16])


def check_the_pictures(folder: Path, count: int) -> None:
    """What the process of `sources` does for pictures that others look at: table, journal, copies."""
    catalogue = Catalogue(folder / "images.sqlite")
    rows = (
        {"image": image.path, "image_name": image.image_key, "source": "coco", "split": image.split} for image in images(count)
    )
    catalogue.add(rows)
    check_images(catalogue, root=folder, journal=folder / "checked.jsonl", max_pixels=10**9, engine=Told())
    assert list(catalogue.settle()) == []
    catalogue.close()


def plan_the_shards(folder: Path, count: int) -> None:
    """What `joint_shards` does first."""
    del count
    write_plan(folder / "plan", sources=folder, depth=folder, params=PARAMS)


def index_the_maps(folder: Path, count: int) -> None:
    """What `teacher_depth` does at its end: parts of shards to one index. The parts are made here as well."""

    def rows(start: int) -> list[DepthRow]:
        shard = f"depth-{start // MAPS_A_SHARD:05d}.tar"
        return [
            DepthRow(
                image_key=key(number),
                shard=shard,
                member=store.member_name(key(number)),
                offset=512 + 150_000 * (number - start),
                size=149_000,
                height=389,
                width=518,
                scale=1e-4,
            )
            for number in range(start, min(start + MAPS_A_SHARD, count))
        ]

    parts = folder / "depth-parts"
    parts.mkdir()
    starts = range(0, count, MAPS_A_SHARD)
    for start in starts:
        store.save_part(parts / f"{start}.json", rows(start), [])
    assert store.write_index(folder, (row for start in starts for row in store.load_part(parts / f"{start}.json")[0])) == count


def join(folder: Path, count: int) -> None:
    """What the workers of `joint_shards` do but for pictures: each shard's images, records and places of maps by key."""
    plan = Plan(folder / "plan", params=PARAMS)
    found = 0
    for name in plan.shards:
        job = plan.job(name)
        assert all(size for _, _, size, *_ in job.maps)
        found += sum(len(own) for _, own in job.images)
    assert found == 2 * count


def index_the_shards(folder: Path, count: int) -> None:
    """What `joint_shards` does at its end. The parts are made here as well."""

    def part(name: str, number: int) -> tars.ShardPart:
        rows = [
            {
                "shard": f"{name}.tar",
                "split": name.partition("-")[0],
                "task": ("referring", "conversation")[sample],
                "entry": entry,
                "annotation": sample,
                "image_offset": 172_000 * entry + 512,
                "image_size": 168_000,
                "json_offset": 172_000 * entry + 169_000,
                "json_size": 1800,
                "width": 640,
                "height": 480,
                "characters": 400,
            }
            for entry in range(number)
            for sample in range(2)
        ]
        return tars.ShardPart(name=f"{name}.tar", size=172_000 * number, sha256="0" * 64, pictures=number, rows=rows)

    out, parts = folder / "joint", folder / "joint-parts"
    out.mkdir()
    parts.mkdir()
    names = Plan(folder / "plan", params=PARAMS).shards
    for name, number in names.items():
        tars.save_part(parts / f"{name}.json", part(name, number))
    made = (tars.load_part(parts / f"{name}.json") for name in names)
    assert tars.write_index(out, made, quarantine=[], manifest={}, about={})["samples"] == 2 * count
    for name, number in names.items():  # the dataset asks for their sizes; sparse files take no place
        with (out / f"{name}.tar").open("wb") as stream:
            stream.truncate(172_000 * number)


def open_the_dataset(folder: Path, count: int) -> None:
    """What every process of `cotrain` holds."""
    assert len(JointDataset(folder / "joint", "train")) > count


STEPS: dict[str, Callable[[Path, int], None]] = {
    "start Python, and no more": lambda _folder, _count: None,
    "have the pictures checked": check_the_pictures,
    "write the manifest": write_the_manifest,
    "read the manifest": read_the_manifest,
    "index the depth maps": index_the_maps,
    "plan the joint shards": plan_the_shards,
    "join all shards by key": join,
    "index the joint shards": index_the_shards,
    "open the dataset for training": open_the_dataset,
}


def run_step(name: str, folder: Path, count: int) -> dict[str, float]:
    """Seconds of processor time, and peak MiB with and without mapped files, of a step in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--step", name, str(folder), str(count)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def own_mib() -> float:
    """Memory of this process without the files that it maps, which the kernel takes back when it wants to (Linux)."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


def watch(own: list[float]) -> None:
    """Note `own_mib` ten times a second."""
    while True:
        own.append(own_mib())
        time.sleep(0.1)


def simulate(sizes: tuple[int, ...]) -> None:
    """Print a row per step: seconds of processor time and peak MiB at each size."""
    print(f"| step | {' | '.join(f'{size:,} images' for size in sizes)} |\n|---|{'---:|' * len(sizes)}")
    cells: dict[str, list[str]] = {name: [] for name in STEPS}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name in STEPS:
                took = run_step(name, Path(folder), size)
                cells[name].append(f"{took['seconds']:.1f} s, {took['peak_mib']:.0f} MiB")
                own = f"{took['own_mib']:.0f} without mapped files"
                print(f"{size} images: {name}: {cells[name][-1]}, {own}", file=sys.stderr, flush=True)
            files = ("images.parquet", "records.parquet", "index.parquet", "joint/samples.parquet")
            sizes_of = {file: (Path(folder) / file).stat().st_size / size for file in files}
            print(f"{size} images: bytes an image: {sizes_of}", file=sys.stderr, flush=True)
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


def main() -> None:
    """Simulate, or with ``--images`` plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=float, nargs="+", help="plan for so many images instead of simulating")
    parser.add_argument("--profile", default="perceptio-1b", help="whose parameters the plan has (default: perceptio-1b)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="images to simulate (default: 10^4 to 10^6)")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, folder, count = arguments.step
        own = [own_mib()]
        threading.Thread(target=watch, args=(own,), daemon=True).start()
        start = time.process_time()
        STEPS[name](Path(folder), int(count))
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak, "own_mib": max(own)}))
    elif arguments.images:
        from benchmarks.scaling_plan import dry_run  # brings torch: the steps are to be measured without it

        print(dry_run([int(images) for images in arguments.images], profile=arguments.profile))
    else:
        simulate(tuple(arguments.sizes))


if __name__ == "__main__":
    main()
