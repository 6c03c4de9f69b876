"""Random access to the samples in the shards of the stage `joint_shards`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perceptio_core.data.loading.shard_cache import ShardCache
from perceptio_core.data.shards.entry import (
    SCHEMA_VERSION,
    Annotation,
    Sample,
    entry_key,
    read_annotation,
    read_sample,
    sample_key,
)
from perceptio_core.data.shards.tars import INDEX, SAMPLES
from perceptio_core.params.shard_source import ShardSource


class JointDataset:
    """The samples of one split, in the order of the shards. Threads may share it, and processes inherit it.

    Args:
        folder: output of the stage `joint_shards`.
        split: "train" or "val".
        source: store that the shards are read from, by way of a cache; the folder then needs no more than ``index.json``
            and ``samples.parquet``. None: they lie in the folder.

    Attributes:
        tasks: per task the indices of its samples, ascending.
        shard_S: per sample the number of its shard.
        sizes_S2: per sample the width and height of its image.
        characters_S: per sample the characters of all its turns.
        index: content of ``index.json``.
        cache: on the way from the store; None without one.

    Raises:
        ValueError: the folder is no such output, is of another schema version, or a shard is absent or of another size; or
            see `ShardCache`.
        StoreError: the store does not answer, or refuses to; at any sample, too.
    """

    def __init__(self, folder: Path, split: str, source: ShardSource | None = None) -> None:
        self.index = read_index(folder)
        try:
            table = pq.read_table(folder / SAMPLES, read_dictionary=["shard", "task", "split"])  # a few words, said often
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{folder}: not the output of joint_shards: {error}") from error
        self.cache = ShardCache(source, folder=folder) if source else None
        for shard in [] if source else self.index["shards"]:
            path = folder / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise ValueError(f"{path}: absent or not {shard['bytes']} bytes long; run joint_shards again")
        rows = table.filter(pa.compute.equal(table["split"], split)).unify_dictionaries()
        del table
        if rows.num_rows == 0:
            raise ValueError(f"{folder}: no samples in split {split!r}; it has {sorted(self.index['counts'])}")
        self._folder = folder
        encoded = rows["shard"].combine_chunks()
        self._shards = [folder / name for name in encoded.dictionary.to_pylist()]
        self.shard_S: NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)

        def pairs(first: str, second: str) -> NDArray[np.integer]:
            return np.stack([rows[name].to_numpy() for name in (first, second)], axis=1)

        self.sizes_S2 = pairs("width", "height")
        self._places_S2 = pairs("entry", "annotation")
        self._images_S2, self._jsons_S2 = pairs("image_offset", "image_size"), pairs("json_offset", "json_size")
        self.characters_S: NDArray[np.int32] = rows["characters"].to_numpy()
        tasks = rows["task"].combine_chunks()
        task_S = tasks.indices.to_numpy()
        places = {task: np.flatnonzero(task_S == number) for number, task in enumerate(tasks.dictionary.to_pylist())}
        self.tasks: dict[str, NDArray[np.int64]] = {task: places[task] for task in sorted(places) if len(places[task])}
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._places_S2)

    def __getitem__(self, number: int) -> Sample:
        """The sample with this index.

        Raises:
            IndexError: there is none.
            ValueError: its bytes are damaged; names shard and key.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        with self._named(number) as key:
            content, image = self._content(number), self._bytes(number, self._images_S2)
            most = int(self.sizes_S2[number].prod())
            return read_sample(content, int(self._places_S2[number, 1]), image=image, key=key, max_pixels=most)

    def annotation(self, number: int) -> Annotation:
        """What the sample with this index says of its picture, which is not decoded; raises what `__getitem__` does."""
        with self._named(number):
            return read_annotation(self._content(number), int(self._places_S2[number, 1]))

    @contextmanager
    def _named(self, number: int) -> Iterator[str]:
        """The key of a sample; damage that is found in the block is said with it."""
        entry, annotation = self._places_S2[number].tolist()
        shard = self._shards[self.shard_S[number]]
        key = sample_key(entry_key(shard.stem, entry), annotation)
        try:
            yield key
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{shard}: sample {key} is damaged: {error}") from error

    def _content(self, number: int) -> dict[str, Any]:
        """All that is said about the picture of a sample."""
        content: dict[str, Any] = json.loads(self._bytes(number, self._jsons_S2))
        return content

    def _bytes(self, number: int, spans_S2: NDArray[np.integer]) -> bytes:
        offset, size = spans_S2[number].tolist()
        with self._opened(int(self.shard_S[number])) as descriptor:
            return os.pread(descriptor, size, offset)

    def shards_of(self, numbers: Iterable[int]) -> list[str]:
        """Names of the shards in which the samples with these indices lie, each once."""
        return list(dict.fromkeys(self._shards[int(self.shard_S[number])].name for number in numbers))

    @contextmanager
    def _opened(self, shard: int) -> Iterator[int]:
        """File descriptor of a shard; one of the cache is not kept, or shards dropped there would go on filling the disk."""
        if self.cache is None:
            yield self._open(shard)
        else:
            with self.cache.opened(self._shards[shard].name) as descriptor:
                yield descriptor

    def _open(self, shard: int) -> int:
        """File descriptor of a shard: opened once per process, read with pread, which keeps no place."""
        owner = (os.getpid(), shard)
        if owner not in self._files:
            descriptor = os.open(self._shards[shard], os.O_RDONLY)
            if self._files.setdefault(owner, descriptor) != descriptor:  # another thread was first
                os.close(descriptor)
        return self._files[owner]

    def close(self) -> None:
        """Close the shards that this process opened."""
        for owner in [owner for owner in self._files if owner[0] == os.getpid()]:
            os.close(self._files.pop(owner))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def read_index(folder: Path) -> dict[str, Any]:
    """The content of ``index.json``.

    Raises:
        ValueError: there is none, or it is of another schema version.
    """
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: not the output of joint_shards: {error}") from error
    if (version := index.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"{folder / INDEX}: schema_version is {version}, this code reads {SCHEMA_VERSION}; run joint_shards again"
        )
    return index
