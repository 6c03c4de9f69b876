"""Which images and records go into which shard: images at random, records of an image by the parameters' limits.

The plan is a folder, made once in a pass over the manifest; whoever makes a shard reads its rows and no others. Making it
takes 56 bytes of memory an image and 16 a record, and a copy of the manifest on disk, from which rows are read in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from perceptio_core.data.manifest.manifest import (
    IMAGES,
    IMAGES_SCHEMA,
    RECORDS,
    RECORDS_SCHEMA,
    ImageRow,
    read_images,
    record_of,
)
from perceptio_core.data.records import Record
from perceptio_core.depth.store import PLACE, places
from perceptio_core.files import whole_folder
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.parquet import Keys, column, read_batches
from perceptio_core.seeds import stream

SPLITS = ("train", "val")
_OF_THE_IMAGE = ("image", "image_name", "split")
_RECORDS_SCHEMA = pa.schema([field for field in RECORDS_SCHEMA if field.name not in _OF_THE_IMAGE])
"""What the plan copies of a record: the image's row has the rest."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to be made: its images with their records."""

    name: str
    split: str
    images: tuple[tuple[ImageRow, tuple[Record, ...]], ...]
    maps: tuple[tuple[Any, ...], ...]
    """Where each image's depth map lies (`perceptio_core.depth.store.PLACE`); size 0 where there is none."""


def write_plan(folder: Path, *, sources: Path, depth: Path, params: JointShardsParams) -> None:
    """Plan the shards of a manifest.

    Args:
        folder: made; holds the manifest's rows for random access, the images of each split in the order of the shards, the
            records of each image, and where its depth map lies.
        sources: output of the stage `sources`.
        depth: output of the stage `teacher_depth`.
        params: the `joint_shards` section.

    Raises:
        ValueError: a file of the manifest is absent or malformed, or an image key occurs twice.
    """
    with whole_folder(folder) as unfinished:
        _write(unfinished, sources, depth, params)


def _write(folder: Path, sources: Path, depth: Path, params: JointShardsParams) -> None:
    images, records = sources / IMAGES, sources / RECORDS
    _copy(read_batches(images, IMAGES_SCHEMA), folder / "images.arrow", IMAGES_SCHEMA)
    _copy(read_batches(records, RECORDS_SCHEMA, columns=_RECORDS_SCHEMA.names), folder / "records.arrow", _RECORDS_SCHEMA)
    keys = Keys((image.image_key for image in read_images(sources)), named=images)
    np.save(folder / "maps.npy", np.fromiter(places(depth, (image.image_key for image in read_images(sources))), PLACE))
    split_N = np.fromiter(map(SPLITS.index, column(images, IMAGES_SCHEMA, "split")), np.int8)
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(split_N == number)
        np.save(folder / f"{split}.npy", rows[stream("order", params.seed, split).permutation(len(rows))])
    image_M = keys.places(column(records, RECORDS_SCHEMA, "image_key"))
    by_image_M = np.argsort(image_M, kind="stable")
    np.save(folder / "records.npy", by_image_M)
    np.save(folder / "first_record.npy", np.searchsorted(image_M[by_image_M], np.arange(len(keys) + 1)))


class Plan:
    """The shards of a folder that `write_plan` made.

    Args:
        folder: the plan.
        params: the `joint_shards` section that it was made with.

    Attributes:
        shards: number of images by the name of the shard, in order.
    """

    def __init__(self, folder: Path, *, params: JointShardsParams) -> None:
        self._params = params
        self._images, self._records = _Rows(folder / "images.arrow"), _Rows(folder / "records.arrow")
        self._order = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
        self._maps_N = np.load(folder / "maps.npy", mmap_mode="r")
        self._by_image_M = np.load(folder / "records.npy", mmap_mode="r")
        self._first_N = np.load(folder / "first_record.npy", mmap_mode="r")
        self.shards = {
            f"{split}-{number:05d}": min(params.images_per_shard, len(order) - start)
            for split, order in self._order.items()
            for number, start in enumerate(range(0, len(order), params.images_per_shard))
        }

    def job(self, name: str) -> ShardJob:
        """The shard with this name."""
        split, _, number = name.rpartition("-")
        start = int(number) * self._params.images_per_shard
        rows = self._order[split][start : start + self._params.images_per_shard]
        spans = [self._by_image_M[self._first_N[row] : self._first_N[row + 1]] for row in rows]
        records = iter(self._records.take(np.concatenate(spans)))
        images = []
        for values, span in zip(self._images.take(rows), spans, strict=True):
            image = ImageRow(**values)
            rest = {"image": image.path, "image_name": None, "split": image.split}
            own = [record_of(row | rest) for row in islice(records, len(span)) if row["image_key"] == image.image_key]
            images.append((image, _choose(own, image_key=image.image_key, params=self._params)))
        return ShardJob(name=name, split=split, images=tuple(images), maps=tuple(self._maps_N[rows].tolist()))


def _choose(records: Sequence[Record], *, image_key: str, params: JointShardsParams) -> tuple[Record, ...]:
    """At random, in random order: neighbours make one conversation, and a data set lists the expressions for one object
    together, of which every turn but the first could copy its mask.
    """
    limits = {"referring": params.referring_per_image, "conversation": params.conversation_per_image}
    limits |= {"marker": None, "depth_map": 1}
    kept: list[Record] = []
    for task, limit in limits.items():
        some = sorted((record for record in records if record.task == task), key=lambda record: record.record_id)
        if some:
            order = stream(task, params.seed, image_key).permutation(len(some))
            kept += [some[i] for i in order[:limit]]
    return tuple(kept)


def _copy(batches: Iterable[pa.RecordBatch], arrow: Path, schema: pa.Schema) -> None:
    """Write rows uncompressed, so that one can be read without those around it."""
    with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


class _Rows:
    """Rows of a file that `_copy` wrote, by number, read from the disk when asked for."""

    def __init__(self, path: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        sizes = [self._file.get_batch(number).num_rows for number in range(self._file.num_record_batches)]
        self._ends = np.cumsum([0, *sizes])

    def take(self, rows_M: NDArray[np.int64]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{}] * len(rows_M)
        batch_M = np.searchsorted(self._ends, rows_M, side="right") - 1
        for number in np.unique(batch_M).tolist():
            here = np.flatnonzero(batch_M == number)
            some = self._file.get_batch(number).take(pa.array(rows_M[here] - self._ends[number]))
            for place, row in zip(here.tolist(), some.to_pylist(), strict=True):
                found[place] = row
        return found
