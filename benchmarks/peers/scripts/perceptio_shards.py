"""Shards by this project, with index and checksums; read at random places, as training reads them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas  # noqa: F401  (as below: imported late by pyarrow)
import webdataset  # noqa: F401  (imported late; imports are not timed)
from pictures import SHARD_BYTES, entries, main
from torch.utils.data import DataLoader, Dataset

from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.shards.entry import Annotation, Entry
from perceptio_core.data.shards.tars import ShardPart, write_index, write_shard


class _Pixels(Dataset[int]):
    def __init__(self, folder: Path) -> None:
        self.samples = JointDataset(folder, "train")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> int:
        image = self.samples[number].image
        return image.width * image.height


def _write(folder: Path, pictures: Path, count: int) -> None:
    folder.mkdir(parents=True)
    parts: list[ShardPart] = []
    held: list[Entry] = []

    def flush() -> None:
        name = f"train-{len(parts):05d}"
        parts.append(write_shard(folder, name=name, split="train", entries=held, quarantine=(), records={}))
        held.clear()

    for image, said in entries(pictures, count):
        about = Annotation(record_id=said["image_key"], task="conversation", source="peers", turns=said["turns"])
        held.append(
            Entry(
                image=image,
                extension="jpg",
                image_key=said["image_key"],
                width=WIDTH,
                height=HEIGHT,
                depth_codes=said["depth_codes"],
                annotations=(about,),
            )
        )
        if len(held) == SHARD_BYTES // 170_000:
            flush()
    if held:
        flush()
    write_index(folder, parts, quarantine=(), manifest={}, about={})


WIDTH = HEIGHT = 10_000
"""More than any of the pictures has: the sizes come from the manifest, which this program has none of."""


def _read(folder: Path, workers: int) -> Iterable[int]:
    dataset = _Pixels(folder)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    return DataLoader(dataset, batch_size=None, sampler=order, num_workers=workers)


main(_write, _read)
