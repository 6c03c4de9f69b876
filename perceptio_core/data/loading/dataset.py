"""Random access to the samples in the shards of the stage `joint_shards`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import open_with_format
from perceptio_core.data.loading.shard_cache import ShardCache
from perceptio_core.data.shards.tars import INDEX, SAMPLES, SCHEMA_VERSION
from perceptio_core.params.shard_source import ShardSource


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training sample.

    Attributes:
        key: place in the shards, e.g. "train-00003-000017".
        record_id: where it comes from.
        image_key: of the image that it is about.
        image: RGB, as the model is to see it (markers drawn).
        task: "referring", "conversation", "marker" or "depth_map".
        turns: (question, answer) pairs.
        masks: one compressed RLE per object to segment, at the image's size; empty for none.
        mask_turns: of each mask, the turn that asks for it (from 0), ascending.
        depth_codes: the N codes of the (unmarked) image, row-major.
        source: name of the data set.
        points: of marker samples, the circled points {letter, x, y}.
    """

    key: str
    record_id: str
    image_key: str
    image: Image.Image
    task: str
    turns: list[tuple[str, str]]
    masks: list[dict[str, Any]]
    mask_turns: list[int]
    depth_codes: list[int] | None
    source: str
    points: list[dict[str, Any]] | None


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
        try:
            self.index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            table = pq.read_table(folder / SAMPLES, read_dictionary=["shard", "task", "split"])  # a few words, said often
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{folder}: not the output of joint_shards: {error}") from error
        if self.index.get("schema_version") != SCHEMA_VERSION:
            version = self.index.get("schema_version")
            raise ValueError(f"{folder / INDEX}: schema_version is {version}, this code reads {SCHEMA_VERSION}")
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
        self._keys = rows["key"]
        encoded = rows["shard"].combine_chunks()
        self._shards = [folder / name for name in encoded.dictionary.to_pylist()]
        self.shard_S: NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)
        columns = ("image_offset", "image_size", "json_offset", "json_size")
        self._spans_S4 = np.stack([rows[name].to_numpy() for name in columns], axis=1)
        self.sizes_S2 = np.stack([rows[name].to_numpy() for name in ("width", "height")], axis=1)
        self.characters_S: NDArray[np.int32] = rows["characters"].to_numpy()
        tasks = rows["task"].combine_chunks()
        task_S = tasks.indices.to_numpy()
        places = {task: np.flatnonzero(task_S == number) for number, task in enumerate(tasks.dictionary.to_pylist())}
        self.tasks: dict[str, NDArray[np.int64]] = {task: places[task] for task in sorted(places) if len(places[task])}
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> Sample:
        """The sample with this index.

        Raises:
            IndexError: there is none.
            ValueError: its bytes are damaged; names shard and key.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard, key = int(self.shard_S[number]), self._keys[number].as_py()
        image_offset, image_size, _, _ = map(int, self._spans_S4[number])
        try:
            content = self.content(number)
            with self._opened(shard) as descriptor:
                encoded = os.pread(descriptor, image_size, image_offset)
            width, height = self.sizes_S2[number]
            image = open_with_format(encoded, max_pixels=int(width) * int(height), name="image").image
            return Sample(
                key=key,
                record_id=content["record_id"],
                image_key=content["image_key"],
                image=image,
                task=content["task"],
                turns=[(question, answer) for question, answer in content["turns"]],
                masks=content["masks"],
                mask_turns=content["mask_turns"],
                depth_codes=content["depth_codes"],
                source=content["source"],
                points=content["points"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._shards[shard]}: sample {key} is damaged: {error}") from error

    def content(self, number: int) -> dict[str, Any]:
        """What the sample with this index says, as it lies in the shard: all fields of `Sample` but the image.

        Raises:
            ValueError: it is no JSON.
        """
        _, _, json_offset, json_size = map(int, self._spans_S4[number])
        with self._opened(int(self.shard_S[number])) as descriptor:
            content: dict[str, Any] = json.loads(os.pread(descriptor, json_size, json_offset))
        return content

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
