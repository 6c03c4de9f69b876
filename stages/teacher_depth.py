"""Stage `teacher_depth`: Depth Anything V2 over every image."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from perceptio_core.data.images import open_image
from perceptio_core.data.manifest.manifest import IMAGES, QUARANTINE, ImageRow, data_root, read_image_range, write_quarantine
from perceptio_core.data.records import Refused
from perceptio_core.depth.store import (
    DepthRow,
    EncodedDepth,
    encode_depth,
    load_part,
    save_part,
    shard_name,
    write_index,
    write_shard,
)
from perceptio_core.depth.teacher import Teacher, batches, stored_size
from perceptio_core.metrics import counted, write_metrics
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from perceptio_core.params.values import read_values
from perceptio_core.parquet import count_rows
from perceptio_core.progress import track
from stages.common import StagePaths, fingerprint, stage_arguments
from stages.shards import ShardWork

DESCRIPTION = """Run the depth teacher (Depth Anything V2) over every image of the manifest.

Reads   artifacts/<profile>/sources/images.parquet, foundations/depth_anything, the images below the data root; the
        section `teacher_depth`.
Does    decodes images ahead of the model (any mode, upright by EXIF), runs it in batches, and keeps inverse depth, near =
        high, in 16 bits with a scale per image. A bad image becomes a quarantine row. A killed run goes on with the
        shards that are missing.
Writes  artifacts/<profile>/teacher_depth/
          depth-00000.tar ...   16-bit PNGs
          index.parquet         image_key, shard, member, byte range, size, scale
          quarantine.jsonl      {file, reason}
          metrics.json, summary.json   counts
"""


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    values = read_values(arguments.params)
    params, paths = values.section("teacher_depth", TeacherDepthParams), StagePaths(values.profile)
    sources, checkpoint = paths.made("sources"), paths.made("foundations") / "depth_anything"
    root = data_root(values.section("sources", SourcesParams), sources)
    key = fingerprint(params, str(root), sources / IMAGES, checkpoint)
    with ShardWork(paths, "teacher_depth", key) as work:
        images, size = count_rows(sources / IMAGES), params.images_per_shard
        shards = {shard_name(number): min(size, images - start) for number, start in enumerate(range(0, images, size))}
        make = partial(_maker, checkpoint, sources, images, root, params, work.out)
        work.make(shards, make, keep=lambda path, part: save_part(path, *part), label="teacher depth", gpu=True)
        refused = 0

        def rows() -> Iterator[DepthRow]:
            """The index rows of all shards; what was left out goes to the quarantine meanwhile."""
            nonlocal refused
            with (work.out / QUARANTINE).open("w", encoding="utf-8") as stream:
                for name in shards:
                    index, quarantine = load_part(work.part(name))
                    refused += write_quarantine(stream, (Refused(**row) for row in quarantine))
                    yield from index

        maps = write_index(work.out, rows())
        write_metrics(work.out, counted({"images": maps, "quarantined": refused, "shards": len(shards)}))
        work.publish()
    logging.getLogger("teacher_depth").info("%d maps, %d images in quarantine", maps, refused)


def _maker(
    checkpoint: Path, sources: Path, images: int, root: Path, params: TeacherDepthParams, out: Path
) -> Callable[[str], tuple[list[DepthRow], list[dict[str, str]]]]:
    """What makes a shard by its name, and gives its rows of the index and of the quarantine."""
    teacher = Teacher.from_pretrained(checkpoint)

    def make(name: str) -> tuple[list[DepthRow], list[dict[str, str]]]:
        start = int(name.removeprefix("depth-").removesuffix(".tar")) * params.images_per_shard
        rows = read_image_range(sources, start=start, stop=min(images, start + params.images_per_shard))
        refused: list[dict[str, str]] = []
        encoded: list[tuple[ImageRow, Future[EncodedDepth]]] = []
        with ThreadPoolExecutor(params.workers) as pool:
            read = track(_read_ahead(pool, rows, teacher, root, params, refused), total=len(rows), label=name, unit="images")
            for batch in batches((item for item in read if item is not None), most_pixels=params.batch_size * teacher.side**2):
                sizes = [stored_size(height=row.height, width=row.width, long_side=params.long_side) for row, _ in batch]
                maps = teacher.inverse_depth([pixels for _, pixels in batch], sizes)
                rows_and_maps = zip((row for row, _ in batch), maps, strict=True)
                encoded += [(row, pool.submit(encode_depth, row.image_key, depth)) for row, depth in rows_and_maps]
            return write_shard(out, name=name, maps=_encoded(encoded, refused)), refused

    return make


def _encoded(encoded: Sequence[tuple[ImageRow, Future[EncodedDepth]]], refused: list[dict[str, str]]) -> Iterator[EncodedDepth]:
    """The maps that can be kept; a quarantine row for one that cannot, as it holds values that are not finite."""
    for row, future in encoded:
        try:
            yield future.result()
        except ValueError as error:
            refused.append({"file": row.path, "reason": str(error)})


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
            return teacher.pixels(open_image(root / row.path, max_pixels=row.width * row.height))
        except ValueError as error:
            return str(error).replace(f"{root}/", "")

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
