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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa

from perceptio_core.data.manifest.manifest import QUARANTINE, write_quarantine
from perceptio_core.data.records import Numbers, Refused
from perceptio_core.files import whole
from perceptio_core.tables import write_rows

SCHEMA_VERSION = 3
INDEX, SAMPLES = "index.json", "samples.parquet"
_COUNTED = ("samples", "records", "quarantined")

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
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("characters", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardSample:
    """One sample before it is written: the encoded image as the model is to see it, and what is said about it.

    Attributes:
        image: bytes of the encoded image.
        extension: "jpg" or "png".
        content: the members of the JSON file, plain values only; `task`, `source`, `turns`, `width` and
            `height` are among them.
    """

    image: bytes
    extension: Literal["jpg", "png"]
    content: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """What the index needs to know of one shard.

    Attributes:
        name: file name.
        size: bytes.
        sha256: hex.
        rows: of its samples in ``samples.parquet``.
        quarantine: what was left out of it.
        counts: (split, task, data set, what, number) with what = samples, records (in samples) or quarantined (records).
    """

    name: str
    size: int
    sha256: str
    rows: list[dict[str, Any]]
    quarantine: list[Refused]
    counts: list[tuple[str, str, str, str, int]]


def write_shard(
    folder: Path,
    *,
    name: str,
    split: str,
    samples: Sequence[ShardSample],
    quarantine: Sequence[Refused],
    records: Mapping[tuple[str, str, str], int],
) -> ShardPart:
    """Write ``<name>.tar`` and return its part of the index; without samples there is no tar.

    Args:
        folder: where to.
        name: of the shard.
        split: of its samples.
        samples: in order.
        quarantine: what was left out.
        records: number by (task, data set, "records" or "quarantined"), see `ShardPart`.
    """
    path = folder / f"{name}.tar"
    found = Counter(records)
    found.update((sample.content["task"], sample.content["source"], "samples") for sample in samples)
    left, counts = list(quarantine), [(split, *what, number) for what, number in sorted(found.items())]
    if not samples:
        return ShardPart(name=path.name, size=0, sha256="", rows=[], quarantine=left, counts=counts)
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
                        "width": sample.content["width"],
                        "height": sample.content["height"],
                        "characters": sum(map(len, chain.from_iterable(sample.content["turns"]))),
                    }
                )
        with unfinished.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = unfinished.stat().st_size
    return ShardPart(name=path.name, size=size, sha256=checksum, rows=rows, quarantine=left, counts=counts)


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
    folder: Path,
    parts: Iterable[ShardPart],
    *,
    quarantine: Iterable[Refused],
    manifest: Mapping[str, Mapping[str, Mapping[str, Numbers]]],
    about: Mapping[str, Any],
) -> dict[str, int]:
    """Write ``index.json``, ``samples.parquet`` and ``quarantine.jsonl``; return the number of samples per split and task.

    Args:
        folder: holds the shards.
        parts: of all shards, in order; one at a time is held.
        quarantine: what was left out before there were shards.
        manifest: what the stage `sources` has counted, per split, task and data set.
        about: further plain values for the index.
    """
    shards: list[dict[str, Any]] = []
    found: Counter[tuple[str, str]] = Counter()
    tally: Counter[tuple[str, str, str, str]] = Counter()
    quarantined = 0

    def rows(stream: IO[str]) -> Iterator[dict[str, Any]]:
        """The rows of all parts; what was left out of them goes to the stream meanwhile."""
        nonlocal quarantined
        for part in parts:
            if part.rows:
                shards.append({"name": part.name, "samples": len(part.rows), "bytes": part.size, "sha256": part.sha256})
            found.update((row["split"], row["task"]) for row in part.rows)
            for split, task, source, what, number in part.counts:
                tally[split, task, source, what] += number
            quarantined += write_quarantine(stream, part.quarantine)
            yield from part.rows

    with (folder / QUARANTINE).open("w", encoding="utf-8") as stream:
        quarantined += write_quarantine(stream, quarantine)
        samples = write_rows(folder / SAMPLES, _SAMPLES, rows(stream), compression="zstd")
    counts: dict[str, dict[str, int]] = {}
    for (split, task), count in sorted(found.items()):
        counts.setdefault(split, {})[task] = count
    data = _realised(tally, manifest)
    index = {"schema_version": SCHEMA_VERSION, **about, "shards": shards, "counts": counts, "data": data}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    flat = {f"{split}_{task}": count for split, tasks in counts.items() for task, count in tasks.items()}
    return {**flat, "samples": samples, "quarantined": quarantined}


def _realised(
    tally: Mapping[tuple[str, str, str, str], int], manifest: Mapping[str, Mapping[str, Mapping[str, Numbers]]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per split, task and data set: samples, the records in them, and the records that were dropped by reason.

    Records and dropped ones together are all that the data set has. Those that the manifest has and no shard tells of were not
    drawn for their image (``referring_per_image``, ``conversation_per_image``).
    """
    places = {(split, task, source) for split, task, source, _ in tally}
    places |= {(split, task, source) for split, tasks in manifest.items() for task, some in tasks.items() for source in some}
    data: dict[str, dict[str, dict[str, Any]]] = {}
    for split, task, source in sorted(places):
        known = manifest.get(split, {}).get(task, {}).get(source, Numbers(records=0, dropped={}))
        samples, records, quarantined = (tally.get((split, task, source, what), 0) for what in _COUNTED)
        dropped = Counter(known["dropped"])
        dropped["quarantined"] += quarantined
        dropped["over_image_limit"] += known["records"] - records - quarantined
        numbers = {"samples": samples, "records": records, "dropped": {name: dropped[name] for name in sorted(+dropped)}}
        data.setdefault(split, {}).setdefault(task, {})[source] = numbers
    return data


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member; the offset of its content in the tar."""
    member = tarfile.TarInfo(name)  # time, user and group are 0, the mode is 644
    member.size = len(content)
    header = tar.offset
    tar.addfile(member, io.BytesIO(content))
    return header + tarfile.BLOCKSIZE  # a USTAR header is one block
