"""Shards by Mosaic's streaming (MDS), with a checksum of each file as ours have."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pictures import SHARD_BYTES, entries, main, pixels, text
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader


class _Pixels(StreamingDataset):
    def __getitem__(self, index: Any) -> int:
        entry = super().__getitem__(index)
        return pixels(entry["jpg"], entry["json"])


def _write(folder: Path, pictures: Path, count: int) -> None:
    columns = {"jpg": "bytes", "json": "bytes"}
    with MDSWriter(out=str(folder), columns=columns, hashes=["sha256"], size_limit=SHARD_BYTES) as shards:
        for image, said in entries(pictures, count):
            shards.write({"jpg": image, "json": text(said)})


def _read(folder: Path, workers: int) -> Iterable[int]:
    dataset = _Pixels(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=1)
    return DataLoader(dataset, batch_size=None, num_workers=workers)


if __name__ == "__main__":
    main(_write, _read)
