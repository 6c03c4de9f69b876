"""WebDataset shards that are the same bytes for the same entries, and the index over them.

An entry (`perceptio_core.data.shards.entry`) is two members of a tar: ``<key>.jpg`` or ``<key>.png`` and ``<key>.json``.
Nothing that differs from run to run (time, user, order of a dict) goes into a shard. A shard appears under its name when it is
whole; its rows of the index, one for each training sample, are kept beside it until all shards are there.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from perceptio_core.data.manifest.manifest import QUARANTINE, write_quarantine
from perceptio_core.data.records import Numbers, Refused
from perceptio_core.data.shards.entry import SCHEMA_VERSION, Entry, entry_key
from perceptio_core.files import whole
from perceptio_core.parquet import write_rows

INDEX, SAMPLES = "index.json", "samples.parquet"
_COUNTED = ("samples", "records", "quarantined")
_BYTES = ("shard_bytes", "picture_bytes", "annotation_bytes")

SAMPLES_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("entry", pa.int32()),
        ("annotation", pa.int32()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("characters", pa.int32()),
    ]
)
"""A row for each training sample: which annotation of which entry of a shard (both from 0), where picture and JSON lie in the
tar, the picture's size, and the characters of all turns."""


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """What the index needs to know of one shard.

    Attributes:
        name: file name.
        size: bytes.
        sha256: hex.
        pictures: its entries.
        picture_bytes: of all encoded pictures.
        annotation_bytes: of all JSON members.
        rows: of its samples in ``samples.parquet``.
        quarantine: what was left out of it.
        counts: (split, task, data set, what, number) with what = samples, records (in samples) or quarantined (records).
    """

    name: str
    size: int = 0
    sha256: str = ""
    pictures: int = 0
    picture_bytes: int = 0
    annotation_bytes: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[Refused] = field(default_factory=list)
    counts: list[tuple[str, str, str, str, int]] = field(default_factory=list)


def write_shard(
    folder: Path,
    *,
    name: str,
    split: str,
    entries: Sequence[Entry],
    quarantine: Sequence[Refused],
    records: Mapping[tuple[str, str, str], int],
) -> ShardPart:
    """Write ``<name>.tar`` and return its part of the index; without entries there is no tar.

    Args:
        folder: where to.
        name: of the shard.
        split: of its samples.
        entries: in order.
        quarantine: what was left out.
        records: number by (task, data set, "records" or "quarantined"), see `ShardPart`.
    """
    import webdataset  # not at the top: it brings torch, which those who only read the index do not need

    path = folder / f"{name}.tar"
    found = Counter(records)
    found.update((said.task, said.source, "samples") for entry in entries for said in entry.annotations)
    part = ShardPart(
        name=path.name,
        quarantine=list(quarantine),
        counts=[(split, *what, number) for what, number in sorted(found.items())],
    )
    if not entries:
        return part
    with whole(path) as unfinished:
        with unfinished.open("wb") as stream, webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False) as tar:
            for number, entry in enumerate(entries):
                tar.write({"__key__": entry_key(name, number), entry.extension: entry.image, "json": entry.to_json()})
        with tarfile.open(unfinished) as written:
            members = {member.name: member for member in written}
        with unfinished.open("rb") as content:
            checksum = hashlib.file_digest(content, "sha256").hexdigest()
        size = unfinished.stat().st_size
    pairs = [
        (members[f"{entry_key(name, number)}.{entry.extension}"], members[f"{entry_key(name, number)}.json"])
        for number, entry in enumerate(entries)
    ]
    rows = [
        {
            "shard": path.name,
            "split": split,
            "task": said.task,
            "entry": entry_number,
            "annotation": number,
            "image_offset": image.offset_data,
            "image_size": image.size,
            "json_offset": content.offset_data,
            "json_size": content.size,
            "width": entry.width,
            "height": entry.height,
            "characters": sum(map(len, chain.from_iterable(said.turns))),
        }
        for entry_number, (entry, (image, content)) in enumerate(zip(entries, pairs, strict=True))
        for number, said in enumerate(entry.annotations)
    ]
    return replace(
        part,
        size=size,
        sha256=checksum,
        pictures=len(entries),
        picture_bytes=sum(image.size for image, _ in pairs),
        annotation_bytes=sum(content.size for _, content in pairs),
        rows=rows,
    )


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
) -> dict[str, float]:
    """Write ``index.json``, ``samples.parquet`` and ``quarantine.jsonl``.

    Args:
        folder: holds the shards.
        parts: of all shards, in order; one at a time is held.
        quarantine: what was left out before there were shards.
        manifest: what the stage `sources` has counted, per split, task and data set.
        about: further plain values for the index.

    Returns:
        ``<split>_<task>`` and ``samples``; ``pictures``; ``quarantined``, lines; the bytes of the tars and, in them, of the
        encoded pictures and of the JSON; and ``shard_overhead``: the tars' by the sum of the other two.
    """
    shards: list[dict[str, Any]] = []
    found: Counter[tuple[str, str]] = Counter()
    tally: Counter[tuple[str, str, str, str]] = Counter()
    sizes: Counter[str] = Counter()
    quarantined = 0

    def rows(stream: IO[str]) -> Iterator[dict[str, Any]]:
        """The rows of all parts; what was left out of them goes to the stream meanwhile."""
        nonlocal quarantined
        for part in parts:
            if part.rows:
                about_it = {"samples": len(part.rows), "pictures": part.pictures, "bytes": part.size, "sha256": part.sha256}
                shards.append({"name": part.name} | about_it)
            values = (part.pictures, part.size, part.picture_bytes, part.annotation_bytes)
            sizes.update(dict(zip(("pictures", *_BYTES), values, strict=True)))
            found.update((row["split"], row["task"]) for row in part.rows)
            for split, task, source, what, number in part.counts:
                tally[split, task, source, what] += number
            quarantined += write_quarantine(stream, part.quarantine)
            yield from part.rows

    with (folder / QUARANTINE).open("w", encoding="utf-8") as stream:
        quarantined += write_quarantine(stream, quarantine)
        samples = write_rows(folder / SAMPLES, SAMPLES_SCHEMA, rows(stream), compression="zstd")
    counts: dict[str, dict[str, int]] = {}
    for (split, task), count in sorted(found.items()):
        counts.setdefault(split, {})[task] = count
    data = _realised(tally, manifest)
    index = {"schema_version": SCHEMA_VERSION, **about, "shards": shards, "counts": counts, "data": data}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    flat = {f"{split}_{task}": count for split, tasks in counts.items() for task, count in tasks.items()}
    shard, *inside = (sizes[name] for name in _BYTES)
    return {
        **flat,
        "samples": samples,
        "quarantined": quarantined,
        **{name: sizes[name] for name in ("pictures", *_BYTES)},
        "shard_overhead": shard / max(1, sum(inside)),
    }


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
