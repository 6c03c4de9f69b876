"""Shards by litData; it knows no checksums."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import litdata
from pictures import SHARD_BYTES, entries, main, pixels, text
from torch.utils.data import DataLoader, Dataset


class _Pixels(litdata.StreamingDataset):
    def __getitem__(self, index: Any) -> int:
        image, said = super().__getitem__(index)
        return pixels(image, said)


def _write(folder: Path, pictures: Path, count: int) -> None:
    writer = litdata.streaming.Cache(str(folder), chunk_bytes=SHARD_BYTES)
    for number, (image, said) in enumerate(entries(pictures, count)):
        writer[number] = (image, text(said))
    writer.done()
    writer.merge()


def _read(folder: Path, workers: int) -> Iterable[int]:
    dataset: Dataset[int] = _Pixels(str(folder), shuffle=True, seed=0)
    return DataLoader(dataset, batch_size=None, num_workers=workers)


main(_write, _read)
