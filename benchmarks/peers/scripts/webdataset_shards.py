"""Shards by webdataset, with a checksum of each file as ours have."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import webdataset
from pictures import SHARD_BYTES, SHUFFLED, entries, main, pixels, text
from torch.utils.data import DataLoader


def _write(folder: Path, pictures: Path, count: int) -> None:
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/train-%05d.tar", maxsize=SHARD_BYTES, verbose=0, encoder=False) as shards:
        for number, (image, said) in enumerate(entries(pictures, count)):
            shards.write({"__key__": f"{number:08d}", "jpg": image, "json": text(said)})
    for file in sorted(folder.glob("*.tar")):
        with file.open("rb") as stream:
            file.with_suffix(".sha256").write_text(hashlib.file_digest(stream, "sha256").hexdigest())


def _read(folder: Path, workers: int) -> Iterable[int]:
    files = [str(file) for file in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(files, shardshuffle=100, seed=0, empty_check=False).shuffle(SHUFFLED)
    dataset = dataset.map(lambda entry: pixels(entry["jpg"], entry["json"]))
    return DataLoader(dataset, batch_size=None, num_workers=workers)


main(_write, _read)
