"""Stage `teacher_depth`: Depth Anything V2 over every image."""

import logging
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from perceptio_core.data.images import open_image
from perceptio_core.data.manifest import ImageRow, data_root, read_images, write_quarantine
from perceptio_core.data.records import Refused
from perceptio_core.depth.store import encode_depth, load_part, save_part, write_index, write_shard
from perceptio_core.depth.teacher import Teacher, batches, stored_size
from perceptio_core.params import load_profile
from perceptio_core.params.teacher_depth import TeacherDepthParams
from perceptio_core.progress import track
from stages.common import StagePaths, fingerprint, publish, stage_arguments, write_metrics

DESCRIPTION = """Run the depth teacher (Depth Anything V2) over every image of the manifest.

Reads   artifacts/<profile>/sources/images.parquet, foundations/depth_anything, the images below the data root; the
        profile's section `teacher_depth`.
Does    decodes images ahead of the model (any mode, upright by EXIF), runs it in batches, and keeps inverse depth, near =
        high, in 16 bits with a scale per image. A bad image becomes a quarantine row. A killed run goes on with the
        shards that are missing.
Writes  artifacts/<profile>/teacher_depth/
          depth-00000.tar ...   16-bit PNGs
          index.parquet         image_key, shard, member, byte range, size, scale
          quarantine.jsonl      {file, reason}
          metrics.json          counts
"""


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    profile = load_profile(arguments.profile)
    params, paths = profile.teacher_depth, StagePaths(arguments.profile)
    sources, checkpoint = paths.out("sources"), paths.out("foundations") / "depth_anything"
    root = data_root(profile.sources, sources)
    work = paths.work("teacher_depth", fingerprint(params, str(root), sources / "images.parquet", checkpoint))
    parts, out = work / "parts", work / "out"
    parts.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)

    images = sorted(read_images(sources), key=lambda row: row.image_key)
    shards = {
        f"depth-{number:05d}.tar": images[start : start + params.images_per_shard]
        for number, start in enumerate(range(0, len(images), params.images_per_shard))
    }
    left = {name: rows for name, rows in shards.items() if not (parts / f"{name}.json").is_file()}
    teacher = Teacher.from_pretrained(checkpoint)
    done = (None for name, rows in left.items() for _ in _make_shard(name, rows, teacher, root, params, parts, out))
    for _ in track(done, total=sum(map(len, left.values())), label="teacher depth", unit="images"):
        pass

    finished = [load_part(parts / f"{name}.json") for name in shards]
    rows = [row for index, _ in finished for row in index]
    refused = [Refused(**row) for _, quarantine in finished for row in quarantine]
    write_index(out, rows)
    write_quarantine(out / "quarantine.jsonl", refused)
    write_metrics(out / "metrics.json", {"images": len(rows), "quarantined": len(refused), "shards": len(shards)})
    publish(out, paths.out("teacher_depth"))
    shutil.rmtree(work)
    logging.getLogger("teacher_depth").info("%d maps, %d images in quarantine", len(rows), len(refused))


def _make_shard(
    name: str,
    rows: Sequence[ImageRow],
    teacher: Teacher,
    root: Path,
    params: TeacherDepthParams,
    parts: Path,
    out: Path,
) -> Iterator[None]:
    """Write one shard and its part of the index; yields once an image, good or bad."""
    refused: list[dict[str, str]] = []
    with ThreadPoolExecutor(params.workers) as pool:
        encoded = []
        readable = (item for item in _read_ahead(pool, rows, teacher, root, params, refused) if item is not None)
        for batch in batches(readable, size=params.batch_size):
            sizes = [stored_size(height=row.height, width=row.width, long_side=params.long_side) for row, _ in batch]
            maps = teacher.inverse_depth([pixels for _, pixels in batch], sizes)
            encoded += [pool.submit(encode_depth, row.image_key, depth) for (row, _), depth in zip(batch, maps, strict=True)]
            yield from (None for _ in batch)
        index = write_shard(out, name=name, maps=(future.result() for future in encoded))
    save_part(parts / f"{name}.json", index, refused)
    yield from (None for _ in refused)


def _read_ahead(
    pool: ThreadPoolExecutor,
    rows: Sequence[ImageRow],
    teacher: Teacher,
    root: Path,
    params: TeacherDepthParams,
    refused: list[dict[str, str]],
) -> Iterator[tuple[ImageRow, torch.Tensor] | None]:
    """(row, pixels) of every image in order, decoded at most two batches ahead; None and a quarantine row for a bad one."""

    def read(row: ImageRow) -> torch.Tensor | str:
        try:
            return teacher.pixels(open_image(root / row.path, max_pixels=params.max_pixels))
        except ValueError as error:
            return str(error)

    coming: deque[tuple[ImageRow, Future[torch.Tensor | str]]] = deque()
    waiting = iter(rows)
    while True:
        while len(coming) < 2 * params.batch_size and (row := next(waiting, None)) is not None:
            coming.append((row, pool.submit(read, row)))
        if not coming:
            return
        row, future = coming.popleft()
        result = future.result()
        if isinstance(result, str):
            refused.append({"file": row.path, "reason": result})
            yield None
        else:
            yield row, result


if __name__ == "__main__":
    main()
