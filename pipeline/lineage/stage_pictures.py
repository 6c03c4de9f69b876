"""A few pictures of what a stage made, for its page: images, masks, depth maps and curves as data URIs."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from perceptio_core.data.images import open_image
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.manifest.manifest import data_root
from perceptio_core.data.records import inside
from perceptio_core.data.rle import decode
from perceptio_core.depth.store import DepthRow, decode_depth
from perceptio_core.jsonl import read_jsonl
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import read_values
from perceptio_core.report.pictures import data_uri, depth_picture, overlay, shrink
from perceptio_core.training.curve_files import read_curves
from stages.common import StagePaths

_COUNT = 3  # they stand side by side
_SIDE = 160


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture inside a URI, and what it shows."""

    uri: str
    caption: str


def pictures_of(stage: str, *, profile: str) -> list[Picture]:
    """Pictures of what a stage (``cotrain@full``: with its variant) last made; empty for a stage that has none to show.

    Raises:
        ValueError, OSError, KeyError: the output is not of the form that the stage writes.
    """
    name, _, variant = stage.partition("@")
    paths = StagePaths(profile)
    draw = _DRAWN.get(name)
    return list(draw(paths, paths.out(name, variant or None))) if draw else []


def _images(_: StagePaths, out: Path) -> Iterator[Picture]:
    root = data_root(read_values().section("sources", SourcesParams), out)
    for row in _first_rows(out / "images.parquet"):
        yield _picture(open_image(root / row["path"], max_pixels=row["width"] * row["height"]), row["image_key"])


def _teacher_maps(_: StagePaths, out: Path) -> Iterator[Picture]:
    for values in _first_rows(out / "index.parquet"):
        row = DepthRow(**values)
        with (out / Path(row.shard).name).open("rb") as shard:
            shard.seek(row.offset)
            png = shard.read(row.size)
        depth_HW = decode_depth(png, height=row.height, width=row.width, scale=row.scale)
        yield _picture(depth_picture(depth_HW, size=(row.width, row.height)), f"{row.image_key}: inverse depth, near is bright")


def _codebook_samples(_: StagePaths, out: Path) -> Iterator[Picture]:
    with Image.open(out / "samples.png") as image:
        yield Picture(uri=data_uri(image.convert("RGB")), caption="maps, and what is decoded from their codes")


def _joint_samples(_: StagePaths, out: Path) -> Iterator[Picture]:
    dataset = JointDataset(out, "train")
    for task in sorted(dataset.tasks, reverse=True)[:_COUNT]:
        sample = dataset[int(dataset.tasks[task][0])]
        yield _picture(sample.image, f"{task}: {sample.key}")
    dataset.close()


def _curves(_: StagePaths, out: Path) -> Iterator[Picture]:
    from perceptio_core.report.plots import (  # brings matplotlib's text layout, which takes a second
        loss_names,
        loss_plot,
    )

    curves = read_curves(out / "curves")
    if curves:
        svg = loss_plot({out.name: curves}, loss_names({out.name: curves})).encode()
        yield Picture(uri=f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}", caption="every loss over the steps")


def _predicted_masks(paths: StagePaths, out: Path) -> Iterator[Picture]:
    root = data_root(read_values().section("sources", SourcesParams), paths.out("sources"))
    rows = read_jsonl(out / "panels.jsonl", keys=("image", "question", "mask", "truth"))
    for row in [row for row in rows if row["mask"] and row["truth"]][:_COUNT]:
        file = root / inside("", row["image"], named_in=out / "panels.jsonl")
        drawn = overlay(open_image(file), [decode(row["mask"])], outline_HW=decode(row["truth"]))
        yield _picture(drawn, f"{row['question']} Tint: its mask; outline: the right one")


def _report_figure(_: StagePaths, out: Path) -> Iterator[Picture]:
    with Image.open(out / "figure.png") as image:
        yield Picture(uri=data_uri(shrink(image, side=900)), caption="image, mask, depth and answer of one question")


_DRAWN: dict[str, Callable[[StagePaths, Path], Iterator[Picture]]] = {
    "sources": _images,
    "teacher_depth": _teacher_maps,
    "depth_codebook": _codebook_samples,
    "joint_shards": _joint_samples,
    "cotrain": _curves,
    "evaluate": _predicted_masks,
    "report": _report_figure,
}


def _first_rows(path: Path) -> list[dict[str, Any]]:
    """The first rows of a parquet file, without reading the rest of it."""
    batch = next(pq.ParquetFile(path).iter_batches(batch_size=_COUNT), None)
    rows: list[dict[str, Any]] = [] if batch is None else batch.to_pylist()
    return rows


def _picture(image: Image.Image, caption: str) -> Picture:
    return Picture(uri=data_uri(shrink(image, side=_SIDE)), caption=caption)
