"""Test images that must not be trained on: found by their id and by what they look like.

By id: COCO numbers its pictures, and the number is in every file name, whichever year's folder or data set the file lies in.
By look: a difference hash (256 bits: is a patch brighter than its left neighbour), equal up to 32 bits. On 183 photographs,
copies at other sizes and JPEG qualities differed by 22 bits at most, different photographs by 74 at least.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptio_core.data.images import difference_hash, open_with_format
from perceptio_core.data.manifest.held_out_places import ALLOWED, Found, Part, Stranger, parts_of, references
from perceptio_core.data.records import Refused
from perceptio_core.files import stamp
from perceptio_core.jsonl import objects
from perceptio_core.progress import track

LARGEST_DISTANCE = 32
"""Bits of 256 by which copies of one picture may differ."""
BY_ID, BY_LOOK = "a held-out test image by its COCO id", "it looks like a held-out test image"
"""Why a training image is left out."""
_UNREAD = "a test image that cannot be read: kept out by its id at most"

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.jpe?g", re.IGNORECASE)
_BITS = 256
_CHUNK = 512  # images compared at once with all test images: 60 MB for 30,000 of them


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What must not be trained on.

    Attributes:
        ids: COCO ids.
        hashes: difference hashes of 32 bytes.
        refused: pictures that could not be read, which are held out by id at most, and files that are no pictures.
    """

    ids: frozenset[int]
    hashes: frozenset[bytes]
    refused: tuple[Refused, ...]


def coco_id(path: str) -> int | None:
    """The number of a COCO picture by its file name, in any of COCO's ways to write it; None for other names."""
    match = _COCO.fullmatch(PurePosixPath(path).name)
    return int(match[1]) if match else None


def read_held_out(
    places: Sequence[str], *, root: Path, max_pixels: int, workers: int = 1, journal: Path | None = None
) -> HeldOut:
    """Read the test images of some places below `root`.

    Args:
        places: folders (all pictures, .parquet and .tsv below them, those in linked folders too), pictures, tables with
            pictures in them (.tsv with base64 in the column image, .parquet with the hub's images), and REFER's
            ``refs(*).p`` (the images of all splits but train, by their ids).
        root: the data root.
        max_pixels: larger images count as unreadable.
        workers: threads that decode.
        journal: what is known of files from earlier runs; one that has not changed since is not read again.

    Raises:
        ValueError: a place is absent, is none of these, or has no image at all; names it.
    """
    parts = [(place, list(_parts(place, root))) for place in places]  # before the first picture is decoded
    known = _Journal(journal)
    ids: set[int] = set()
    hashes: set[bytes] = set()
    refused: list[Refused] = []
    for place, some in parts:
        if isinstance(some[0], str):
            numbers = {name: coco_id(name) for name in some if isinstance(name, str)}
            if unnumbered := sorted(name for name, number in numbers.items() if number is None):
                reason = f"{len(unnumbered)} test images have no COCO file name, such as {unnumbered[0]}: held out by nothing"
                refused.append(Refused(file=place, reason=reason))
            ids.update(number for number in numbers.values() if number is not None)
            continue
        files = [part for part in some if isinstance(part, Part)]
        label = f"held-out images of {place}"
        for row in known.read(files, label=label, max_pixels=max_pixels, workers=workers):
            ids.update(row["ids"])
            hashes.update(bytes.fromhex(look) for look in row["looks"])
            refused += (Refused(file=name, reason=f"{_UNREAD} ({reason})") for name, reason in row["failed"])
        strangers = [part for part in some if isinstance(part, Stranger)]
        ids.update(number for stranger in strangers if (number := coco_id(stranger.file.name)) is not None)
        refused += _said(place, strangers)
    known.close()
    return HeldOut(ids=frozenset(ids), hashes=frozenset(hashes), refused=tuple(refused))


def _parts(place: str, root: Path) -> Iterator[Part | Stranger | str]:
    """The files of a place, or the names that its references give.

    Raises:
        ValueError: it is absent, holds no image, or a folder that cannot be read.
    """
    path, count = root / place, 0
    found = references(path) if path.suffix == ".p" and path.is_file() else parts_of(place, root=root)
    try:
        for part in found:
            count += not isinstance(part, Stranger)
            yield part
    except OSError as error:  # a folder in it that may not be read
        raise ValueError(f"sources.held_out: {error.filename}: {error.strerror}") from error
    if count == 0:
        raise ValueError(f"sources.held_out: {path} holds no images; {ALLOWED}")


def _said(place: str, strangers: Sequence[Stranger]) -> Iterator[Refused]:
    """A line for each kind of file that is no picture."""
    first = {stranger.file.suffix.lower(): stranger.name for stranger in reversed(strangers)}
    for suffix, count in sorted(Counter(stranger.file.suffix.lower() for stranger in strangers).items()):
        reason = (
            f"no pictures: {count} files {suffix or 'without a suffix'}, such as {first[suffix]}; nothing in them is held out"
        )
        yield Refused(file=place, reason=reason)


class _Journal:
    """What files with test images hold, remembered from run to run.

    A line is {name, path, stamp, max_pixels, ids, looks, failed}; all of it is in memory, like the test images.
    """

    def __init__(self, path: Path | None) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._stream = None if path is None else path.open("a+", encoding="utf-8")
        if self._stream is not None:
            self._stream.seek(0)
            # All but the line that a killed run left half written.
            self._known = {row["name"]: row for _, row in objects(self._stream) if isinstance(row, dict) and "name" in row}
            self._stream.write("\n")  # ends a half-written line

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def read(self, parts: Sequence[Part], *, label: str, max_pixels: int, workers: int) -> Iterator[dict[str, Any]]:
        """The line of each file."""

        def look(part: Part) -> dict[str, Any]:
            about = {"path": str(part.file), "stamp": stamp(part.file), "max_pixels": max_pixels, "name": part.name}
            known = self._known.get(part.name, {})
            return known if about.items() <= known.items() else about | _content(part, max_pixels)

        with ThreadPoolExecutor(workers) as pool:
            for row in track(pool.map(look, parts), total=len(parts), label=label, unit="files"):
                if self._stream is not None and self._known.get(row["name"]) is not row:
                    self._stream.write(json.dumps(row) + "\n")
                yield row


def _content(part: Part, max_pixels: int) -> dict[str, Any]:
    """COCO ids and difference hashes of the pictures in a file, and (name, reason) of those that cannot be read."""
    ids: list[int] = []
    looks: list[str] = []
    failed: list[tuple[str, str]] = []
    whole = Found(name=part.name, file_name=part.file.name, picture=part.file)
    for found in [whole] if part.read is None else part.read(part):
        number = coco_id(found.file_name)
        ids += [] if number is None else [number]
        try:
            if isinstance(found.picture, str):
                raise ValueError(found.picture)
            looks.append(difference_hash(open_with_format(found.picture, max_pixels=max_pixels, name="").image).hex())
        except ValueError as error:
            failed.append((found.name, str(error).removeprefix(": ")))
    return {"ids": ids, "looks": looks, "failed": failed}


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
