"""WebDataset shards that are the same bytes for the same samples, and the index over them.

A sample is two members of a tar: ``<key>.jpg`` or ``<key>.png`` and ``<key>.json``. Nothing that differs from run to run
(time, user, order of a dict) goes into a shard. A shard appears under its name when it is whole; its rows of the index
are kept beside it until all shards are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from perceptio_core.data.manifest import write_quarantine
from perceptio_core.data.records import Refused
from perceptio_core.files import whole

SCHEMA_VERSION = 2
INDEX, SAMPLES, QUARANTINE = "index.json", "samples.parquet", "quarantine.jsonl"

_SAMPLES = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("image_ext", pa.string()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """One sample before it is written: the encoded image as the model is to see it, and what is said about it.

    Attributes:
        image: bytes of the encoded image.
        extension: "jpg" or "png".
        content: the members of the JSON file, plain values only; `task` is among them.
    """

    image: bytes
    extension: Literal["jpg", "png"]
    content: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """What the index needs to know of one shard: its samples' rows, its size and checksum, and what was left out of it."""

    name: str
    size: int
    sha256: str
    rows: list[dict[str, Any]]
    quarantine: list[Refused]


def write_shard(
    folder: Path, *, name: str, split: str, samples: Sequence[ShardSample], quarantine: Sequence[Refused]
) -> ShardPart:
    """Write ``<name>.tar`` and return its part of the index; without samples there is no tar."""
    path = folder / f"{name}.tar"
    if not samples:
        return ShardPart(name=path.name, size=0, sha256="", rows=[], quarantine=list(quarantine))
    rows = []
    with whole(path) as unfinished:
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, sample in enumerate(samples):
                key = f"{name}-{number:06d}"
                said = json.dumps(sample.content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
                image_offset = _add(tar, f"{key}.{sample.extension}", sample.image)
                json_offset = _add(tar, f"{key}.json", said)
                rows.append(
                    {
                        "key": key,
                        "shard": path.name,
                        "task": sample.content["task"],
                        "split": split,
                        "image_offset": image_offset,
                        "image_size": len(sample.image),
                        "image_ext": sample.extension,
                        "json_offset": json_offset,
                        "json_size": len(said),
                    }
                )
        with unfinished.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = unfinished.stat().st_size
    return ShardPart(name=path.name, size=size, sha256=checksum, rows=rows, quarantine=list(quarantine))


def save_part(path: Path, part: ShardPart) -> None:
    """Keep a part; a part that is there says that its shard is whole."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(asdict(part)), encoding="utf-8")


def load_part(path: Path) -> ShardPart:
    """Read what `save_part` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["quarantine"] = [Refused(**row) for row in content["quarantine"]]
    return ShardPart(**content)


def write_index(
    folder: Path, parts: Sequence[ShardPart], *, quarantine: Sequence[Refused], about: Mapping[str, Any]
) -> dict[str, int]:
    """Write ``index.json``, ``samples.parquet`` and ``quarantine.jsonl``; return the number of samples per split and task.

    Args:
        folder: holds the shards.
        parts: of all shards, in order.
        quarantine: what was left out before there were shards.
        about: further plain values for the index.
    """
    rows = [row for part in parts for row in part.rows]
    table = pa.Table.from_pylist(rows, schema=_SAMPLES)
    pq.write_table(table, folder / SAMPLES, compression="zstd")
    refused = [*quarantine, *(row for part in parts for row in part.quarantine)]
    write_quarantine(folder / QUARANTINE, refused)
    counts: dict[str, dict[str, int]] = {}
    for (split, task), count in sorted(Counter((row["split"], row["task"]) for row in rows).items()):
        counts.setdefault(split, {})[task] = count
    index = {
        "schema_version": SCHEMA_VERSION,
        **about,
        "shards": [
            {"name": part.name, "samples": len(part.rows), "bytes": part.size, "sha256": part.sha256}
            for part in parts
            if part.rows
        ],
        "counts": counts,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    flat = {f"{split}_{task}": count for split, tasks in counts.items() for task, count in tasks.items()}
    return {**flat, "samples": len(rows), "quarantined": len(refused)}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member; the offset of its content in the tar."""
    member = tarfile.TarInfo(name)  # time, user and group are 0, the mode is 644
    member.size = len(content)
    header = tar.offset
    tar.addfile(member, io.BytesIO(content))
    return header + tarfile.BLOCKSIZE  # a USTAR header is one block
