"""Depth maps on disk: tar shards of 16-bit PNG with a scale per image, and random access to them (ours).

A stored map is inverse depth, near = high, as unsigned 16-bit values times `scale`; the rounding error is at most half a
scale, 1/131070 of the image's highest value. The shards are ordinary tars (webdataset reads them), and the same maps give
the same bytes. ``index.parquet`` knows the byte range of every PNG.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.files import whole
from perceptio_core.parquet import Keys, ascending, column, find_twice, read_batches, read_rows, write_rows

INDEX = "index.parquet"
LEVELS = 65535
_SHARD_NAME = re.compile(r"^depth-(\d{5,})\.tar$")
_BLOCK = 512  # bytes; tar pads to it
_INDEX = pa.schema(
    [
        ("image_key", pa.string()),
        ("shard", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("scale", pa.float64()),
    ]
)
PLACE = np.dtype([("offset", "i8"), ("scale", "f8"), ("size", "i4"), ("shard", "i4"), ("height", "i4"), ("width", "i4")])
"""Where a map lies: `size` bytes of PNG at `offset` of a shard, by its number; inverse depth = value * scale."""


@dataclass(frozen=True, kw_only=True)
class DepthRow:
    """Where a map lies: `size` bytes of PNG at `offset` of the tar `shard`; inverse depth = value * scale."""

    image_key: str
    shard: str
    member: str
    offset: int
    size: int
    height: int
    width: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class EncodedDepth:
    """A map before it is put into a shard."""

    image_key: str
    png: bytes
    height: int
    width: int
    scale: float


def encode_depth(image_key: str, inverse_depth_HW: NDArray[np.floating]) -> EncodedDepth:
    """Quantise a map of inverse depth (any unit, >= 0, near = high) to 16 bits.

    Raises:
        ValueError: the map is empty, or holds values that are negative or not finite.
    """
    if inverse_depth_HW.ndim != 2 or inverse_depth_HW.size == 0:
        raise ValueError(f"{image_key}: a depth map must have two sides, got shape {inverse_depth_HW.shape}")
    low, high = float(inverse_depth_HW.min()), float(inverse_depth_HW.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{image_key}: the depth map holds values that are not finite")
    if low < 0:
        raise ValueError(f"{image_key}: inverse depth must not be negative, found {low:g}")
    scale = high / LEVELS if high > 0 else 1.0
    values_HW = np.rint(np.asarray(inverse_depth_HW, np.float64) / scale).clip(0, LEVELS).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values_HW).save(stream, format="PNG", compress_level=1)
    height, width = values_HW.shape
    return EncodedDepth(image_key=image_key, png=stream.getvalue(), height=height, width=width, scale=scale)


def decode_depth(png: bytes, *, height: int, width: int, scale: float) -> NDArray[np.float32]:
    """The map (H, W) of inverse depth that `encode_depth` was given, to within half a scale.

    Raises:
        ValueError: not a 16-bit gray PNG of the stated size (read from its header, before decoding).
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.size != (width, height) or not image.mode.startswith("I"):
                raise ValueError(f"a {image.mode} image of {image.size}, expected 16-bit gray of {(width, height)}")
            values_HW = np.asarray(image)
    except Exception as error:  # decoders of damaged bytes raise far more than OSError
        what = str(error) if type(error) is ValueError else f"not a PNG that can be read: {error}"
        raise ValueError(what) from error
    return (values_HW * scale).astype(np.float32)


def member_name(image_key: str) -> str:
    """Name of an image's member: the key with ``/`` written as ``__``, so that no member is a path."""
    return f"{image_key.replace('/', '__')}.png"


def write_shard(folder: Path, *, name: str, maps: Iterable[EncodedDepth]) -> list[DepthRow]:
    """Write ``folder/name`` (whole or not at all) with the maps in order of their keys, and return its index rows."""
    rows = []
    with whole(folder / name) as unfinished, tarfile.open(unfinished, "w", format=tarfile.GNU_FORMAT) as tar:
        for one in sorted(maps, key=lambda one: one.image_key):
            info = tarfile.TarInfo(member_name(one.image_key))
            info.size, info.mtime, info.mode = len(one.png), 0, 0o644
            tar.addfile(info, io.BytesIO(one.png))
            offset = tar.offset - -(-len(one.png) // _BLOCK) * _BLOCK
            rows.append(
                DepthRow(
                    image_key=one.image_key,
                    shard=name,
                    member=info.name,
                    offset=offset,
                    size=len(one.png),
                    height=one.height,
                    width=one.width,
                    scale=one.scale,
                )
            )
    return rows


def save_part(path: Path, rows: Sequence[DepthRow], quarantine: Sequence[dict[str, str]]) -> None:
    """Keep the index rows and {file, reason} rows of a shard; the file says that the shard is whole."""
    content = {"rows": [asdict(row) for row in rows], "quarantine": list(quarantine)}
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def load_part(path: Path) -> tuple[list[DepthRow], list[dict[str, str]]]:
    """Read what `save_part` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [DepthRow(**row) for row in content["rows"]], content["quarantine"]


def write_index(folder: Path, rows: Iterable[DepthRow]) -> int:
    """Write ``index.parquet``; returns the number of rows.

    Args:
        folder: holds the shards.
        rows: of all maps, ascending by key.

    Raises:
        ValueError: the keys do not ascend, or two that differ give the same member name.
    """
    path = folder / INDEX
    count = write_rows(path, _INDEX, map(asdict, ascending(rows, named=path)))
    if (twice := find_twice(path, _INDEX, "member")) is not None:
        both = [row["image_key"] for row in read_rows(path, _INDEX) if row["member"] == twice]
        raise ValueError(f"{folder}: {' and '.join(map(repr, both))} are both {twice!r}")
    return count


def places(folder: Path, image_keys: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    """Where the map of each image lies, in the order of `PLACE`, without holding the index; size 0 where there is no map.

    Args:
        folder: that the stage `teacher_depth` wrote.
        image_keys: ascending, as the index is.

    Raises:
        ValueError: what `DepthStore` raises.
    """
    batches = (_places(batch, folder) for batch in read_batches(_index(folder), _INDEX))
    maps = (row for keys, rows in batches for row in zip(keys, rows.tolist(), strict=True))
    key, place = next(maps, (None, ()))
    for image_key in image_keys:
        while key is not None and key < image_key:
            key, place = next(maps, (None, ()))
        yield place if key == image_key else (0, 0.0, 0, 0, 0, 0)


def _index(folder: Path) -> Path:
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{path}: not found; the stage teacher_depth writes it")
    return path


def _places(batch: pa.RecordBatch, folder: Path) -> tuple[list[str], NDArray[Any]]:
    """Keys and places of some rows of the index."""
    some = np.empty(batch.num_rows, PLACE)
    for name in ("offset", "size", "height", "width", "scale"):
        some[name] = batch.column(name).to_numpy()
    names = batch.column("shard").dictionary_encode()
    numbers = [_shard_number(name, folder) for name in names.dictionary.to_pylist()]
    some["shard"] = np.array(numbers, np.int32)[names.indices.to_numpy()]
    return batch.column("image_key").to_pylist(), some


def shard_name(number: int) -> str:
    """What a shard is called: ``depth-00012.tar``."""
    return f"depth-{number:05d}.tar"


def _shard_number(name: str, folder: Path) -> int:
    match = _SHARD_NAME.match(name)
    if match is None or shard_name(int(match[1])) != name:
        raise ValueError(f"{folder / INDEX}: {name!r} is no name of a shard")
    return int(match[1])


class DepthMaps:
    """Reads maps of a folder that the stage `teacher_depth` wrote by their places.

    May be pickled and forked: each process opens the shards for itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._files: dict[int, int] = {}
        self._process = os.getpid()

    def read(self, place: tuple[Any, ...], *, image_key: str) -> NDArray[np.float32]:
        """Inverse depth (H, W), near = high: 1/m for a metric teacher, else relative.

        Raises:
            ValueError: the map is damaged; names its shard.
        """
        offset, scale, size, shard, height, width = place
        png = os.pread(self._file(shard), size, offset)
        try:
            return decode_depth(png, height=height, width=width, scale=scale)
        except ValueError as error:
            raise ValueError(f"{self.folder / shard_name(shard)}: {member_name(image_key)}: {error}") from error

    def _file(self, shard: int) -> int:
        if self._process != os.getpid():  # a fork: descriptors are shared, but closing them is each process's own affair
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = os.open(self.folder / shard_name(shard), os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]

    def close(self) -> None:
        """Close the shards; they open again when read."""
        if self._process == os.getpid():
            for file in self._files.values():
                os.close(file)
        self._files = {}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_process": -1}


class DepthStore(DepthMaps):
    """Random access to the maps by their images' keys, ``store[image_key]``; 48 bytes of memory a map.

    Raises:
        ValueError: the index is absent or of another schema, or names a shard outside the folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = _index(self.folder)
        self._keys = Keys(column(path, _INDEX, "image_key"), named=path)
        self._places_N = np.empty(len(self._keys), PLACE)
        start = 0
        for batch in read_batches(path, _INDEX):
            _, self._places_N[start : start + batch.num_rows] = _places(batch, self.folder)
            start += batch.num_rows

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, image_key: str) -> bool:
        return bool(self._keys.places([image_key])[0] >= 0)

    def __getitem__(self, image_key: str) -> NDArray[np.float32]:
        number = int(self._keys.places([image_key])[0])
        if number < 0:
            raise KeyError(image_key)
        return self.read(self._places_N[number].item(), image_key=image_key)
