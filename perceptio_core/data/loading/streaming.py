"""The training samples as a pipeline of plain webdataset, for training loops of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import webdataset

from perceptio_core.data.loading.dataset import read_index
from perceptio_core.data.shards.entry import Sample, read_sample, sample_key


def webdataset_samples(folder: Path | str, split: str, **options: Any) -> webdataset.WebDataset:
    """The samples of one split, shard by shard: those of `JointDataset`, which webdataset can shuffle, map and batch.

    Args:
        folder: output of the stage `joint_shards`.
        split: "train" or "val".
        options: of `webdataset.WebDataset`, such as `shardshuffle` (default: False) and `nodesplitter`.

    Raises:
        ValueError: the folder is no such output, is of another schema version, or has no such split.
    """
    names = [shard["name"] for shard in read_index(Path(folder))["shards"] if shard["name"].startswith(f"{split}-")]
    if not names:
        raise ValueError(f"{folder}: no shards of split {split!r}")
    given = {"shardshuffle": False} | options
    return webdataset.WebDataset([str(Path(folder) / name) for name in names], **given).compose(samples)


def samples(entries: Iterable[dict[str, Any]]) -> Iterator[Sample]:
    """The samples of entries as webdataset reads them; a stage for `compose`, wherever the shards lie."""
    for entry in entries:
        content, image = json.loads(entry["json"]), entry["jpg" if "jpg" in entry else "png"]
        for number in range(len(content["annotations"])):
            yield read_sample(content, number, image=image, key=sample_key(entry["__key__"], number))
