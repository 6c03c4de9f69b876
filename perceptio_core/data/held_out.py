"""Test images that must not be trained on: found by their id and by what they look like.

By id: COCO numbers its pictures, and the number is in every file name, whichever year's folder or data set the file lies in.
By look: a difference hash (256 bits: is a patch brighter than its left neighbour), equal up to 32 bits. On 183 photographs,
copies at other sizes and JPEG qualities differed by 22 bits at most, different photographs by 74 at least.
"""

from __future__ import annotations

import base64
import binascii
import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from perceptio_core.data.images import difference_hash, open_image
from perceptio_core.data.instances import read_instance_images
from perceptio_core.data.refer import read_plain_pickle
from perceptio_core.progress import track

LARGEST_DISTANCE = 32
"""Bits of 256 by which copies of one picture may differ."""
BY_ID, BY_LOOK = "a held-out test image by its COCO id", "it looks like a held-out test image"
"""Why a training image is left out."""

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.jpe?g", re.IGNORECASE)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_POINTER = 64  # a text in a table's column of images that is not longer names another row, as in MMBench
_BITS = 256
_CHUNK = 512  # images compared at once with all test images: 60 MB for 30,000 of them


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What must not be trained on.

    Attributes:
        ids: COCO ids.
        hashes: difference hashes of 32 bytes.
        unreadable: pictures that could not be read, by what errors call them: they are held out by id at most.
    """

    ids: frozenset[int]
    hashes: frozenset[bytes]
    unreadable: tuple[str, ...]


def coco_id(path: str) -> int | None:
    """The number of a COCO picture by its file name, in any of COCO's ways to write it; None for other names."""
    match = _COCO.fullmatch(PurePosixPath(path).name)
    return int(match[1]) if match else None


def read_held_out(places: Sequence[str], *, root: Path, max_pixels: int) -> HeldOut:
    """Read the test images of some places below `root`.

    Args:
        places: folders (all images and .parquet below them), tables with images in them (.tsv with base64 in the column image,
            .parquet with the hub's images), and REFER's ``refs(*).p`` (the images of all splits but train, by their ids).
        root: the data root.
        max_pixels: larger images count as unreadable.

    Raises:
        ValueError: a place is absent, is none of these, or has no image at all; names it.
    """
    ids: set[int] = set()
    hashes: set[bytes] = set()
    unreadable: list[str] = []
    for place in places:
        before = len(ids), len(hashes), len(unreadable)
        for name, image in track(_images(root / place), label=f"held-out images of {place}", unit="images"):
            number = coco_id(name)
            if number is not None:
                ids.add(number)
            if image is None:
                continue
            try:
                hashes.add(difference_hash(open_image(image, max_pixels=max_pixels)))
            except ValueError:
                unreadable.append(f"{place}: {name}")
        if before == (len(ids), len(hashes), len(unreadable)):
            raise ValueError(f"sources.held_out: {root / place} holds no images")
    return HeldOut(ids=frozenset(ids), hashes=frozenset(hashes), unreadable=tuple(unreadable))


def reasons_to_leave_out(images: Callable[[], Iterable[tuple[str, bytes]]], held_out: HeldOut) -> Iterator[tuple[str, str]]:
    """Which images are held out, and by what: (path, reason). In memory are the test images, some 1.5 kB each.

    Args:
        images: gives path and difference hash of each; called twice.
        held_out: what must not be trained on. Images with a held-out id say what other copies of them look like.
    """
    known = set(held_out.hashes)
    for path, look in images():
        if coco_id(path) in held_out.ids:
            known.add(look)
            yield path, BY_ID
    if not known:
        return
    known_KB = _signs(sorted(known))
    others = ((path, look) for path, look in images() if coco_id(path) not in held_out.ids)
    chunks = iter(lambda: list(islice(others, _CHUNK)), [])
    for chunk in track(chunks, label="comparing with test images", unit=f"x {_CHUNK} images"):
        # Bits as -1 and 1: two hashes agree in (256 + product) / 2 bits, and the sums are exact in float32.
        nearest_C = (_signs([look for _, look in chunk]) @ known_KB.T).max(axis=1)
        for row in np.flatnonzero(nearest_C >= _BITS - 2 * LARGEST_DISTANCE):
            yield chunk[int(row)][0], BY_LOOK


def _signs(hashes: Sequence[bytes]) -> NDArray[np.float32]:
    """Hashes (n, 256), -1 or 1 for each bit."""
    bits_NB = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8)).reshape(-1, _BITS)
    return bits_NB.astype(np.float32) * 2 - 1


def _images(path: Path) -> Iterator[tuple[str, Path | bytes | None]]:
    """(name, picture or nothing but its name) of all images of a place."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if file.suffix.lower() in _SUFFIXES:
                yield name, file
            elif file.suffix == ".parquet":
                yield from ((f"{name}, {row}", picture) for row, picture in _of_parquet(file))
    elif not path.is_file():
        raise ValueError(f"sources.held_out: {path} is absent")
    elif path.suffix == ".tsv":
        yield from _of_tsv(path)
    elif path.suffix == ".parquet":
        yield from _of_parquet(path)
    elif path.suffix == ".p":
        yield from ((name, None) for name in _of_references(path))
    else:
        raise ValueError(f"sources.held_out: {path}: allowed are folders, .tsv, .parquet and REFER's refs(*).p")


def _of_tsv(path: Path) -> Iterator[tuple[str, bytes]]:
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8") as stream:
        for number, row in enumerate(csv.DictReader(stream, delimiter="\t")):
            text = row.get("image")
            if text is None:
                raise ValueError(f"sources.held_out: {path}: row {number} has no column image")
            if len(text) > _POINTER:
                try:
                    yield f"row {number}", base64.b64decode(text)
                except binascii.Error:
                    yield f"row {number}", b""


def _of_parquet(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"sources.held_out: {path}: {error}") from error
    pictures = [column.name for column in file.schema_arrow if _is_picture(column.type)]
    number = 0
    for batch in file.iter_batches(batch_size=64, columns=pictures):
        for row in batch.to_pylist():
            for name, value in row.items():
                if value is not None and value["bytes"]:
                    yield f"row {number}, {name}", value["bytes"]
            number += 1


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))


def _of_references(path: Path) -> Iterator[str]:
    refs: Any = read_plain_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path}: expected a list of references")
    images = read_instance_images(path.parent / "instances.json")
    for number in {ref.get("image_id") for ref in refs if ref.get("split") != "train"}:
        if (image := images.get(number)) is not None:
            yield image["file_name"]
