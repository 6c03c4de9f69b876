"""Parquet tables of any length, written and read a batch at a time, and strings looked up by 64-bit hashes.

A row group has 65,536 rows, or fewer where these are more than 64 MiB, so that neither writer nor reader holds more of a table
than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROW_GROUP = 65_536
_GROUP_BYTES = 1 << 26
_AT_ONCE = 4096  # rows that are Python objects at the same time


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]], *, compression: str = "snappy") -> int:
    """Write a table; the same rows give the same bytes. Returns their number."""
    count, chunks = 0, _chunks(iter(rows), schema)
    with pq.ParquetWriter(path, schema, compression=compression) as writer:
        while group := _group(chunks):
            table = pa.concat_tables(group)
            writer.write_table(table, row_group_size=ROW_GROUP)
            count += table.num_rows
        if count == 0:
            writer.write_table(schema.empty_table())
    return count


def _chunks(rows: Iterator[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    while some := list(islice(rows, _AT_ONCE)):
        yield pa.Table.from_pylist(some, schema=schema)


def _group(chunks: Iterator[pa.Table]) -> list[pa.Table]:
    """The next chunks that make a row group."""
    group: list[pa.Table] = []
    for chunk in chunks:
        group.append(chunk)
        if len(group) == ROW_GROUP // _AT_ONCE or sum(one.nbytes for one in group) > _GROUP_BYTES:
            break
    return group


def read_batches(
    path: Path, schema: pa.Schema, *, columns: Sequence[str] | None = None, at_once: int = ROW_GROUP
) -> Iterator[pa.RecordBatch]:
    """The rows in order, at most `at_once` of a row group at a time.

    Raises:
        ValueError: the file is absent, no Parquet, or of another schema; names the file.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check(file, path, schema)
            for number in range(file.num_row_groups):
                yield from file.iter_batches(batch_size=at_once, row_groups=[number], columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error


def read_rows(path: Path, schema: pa.Schema, *, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The same as plain values, row by row; raises what `read_batches` does."""
    for batch in read_batches(path, schema, columns=columns, at_once=_AT_ONCE):
        yield from batch.to_pylist()


def column(path: Path, schema: pa.Schema, name: str) -> Iterator[Any]:
    """The values of one column; raises what `read_batches` does."""
    for batch in read_batches(path, schema, columns=[name]):
        yield from batch.column(0).to_pylist()


def read_range(path: Path, schema: pa.Schema, *, start: int, stop: int) -> list[dict[str, Any]]:
    """The rows from `start` to before `stop`, read from the row groups that hold them; raises what `read_batches` does."""
    try:
        with pq.ParquetFile(path) as file:
            _check(file, path, schema)
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            first, last = (int(np.searchsorted(ends, row, side="right")) for row in (start, stop - 1))
            table = file.read_row_groups(list(range(first, last + 1)))
            rows: list[dict[str, Any]] = table.slice(start - (int(ends[first]) - sizes[first]), stop - start).to_pylist()
            return rows
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error


def _check(file: pq.ParquetFile, path: Path, schema: pa.Schema) -> None:
    if not file.schema_arrow.equals(schema):
        raise ValueError(f"{path}: columns are {file.schema_arrow.names}, expected {schema.names} of their types")


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pq.read_metadata(path).num_rows)


class Keyed(Protocol):
    """A row about one image."""

    @property
    def image_key(self) -> str: ...  # noqa: D102


Row = TypeVar("Row", bound=Keyed)


def ascending(rows: Iterable[Row], *, named: Path) -> Iterator[Row]:
    """The rows as they come. Raises ValueError at one whose image key is not above that of the row before it."""
    before = ""
    for row in rows:
        if row.image_key <= before:
            how = "occurs twice" if row.image_key == before else f"comes after {before!r}, but the rows must ascend by it"
            raise ValueError(f"{named}: image_key {row.image_key!r} {how}")
        before = row.image_key
        yield row


class Keys:
    """Which place a key has in a list of keys, by 16 bytes a key.

    Args:
        keys: all of them, in order.
        named: what to call the list in a message.

    Raises:
        ValueError: two keys are the same (or have the same hash, which happens to one list of 10^9 keys in 40).
    """

    def __init__(self, keys: Iterable[str], *, named: Path) -> None:
        hashes_N = _hashes(keys)
        self._order_N = np.argsort(hashes_N, kind="stable")
        self._sorted_N = hashes_N[self._order_N]
        if (same := np.flatnonzero(self._sorted_N[1:] == self._sorted_N[:-1])).size:
            first, second = self._order_N[same[0] : same[0] + 2].tolist()
            raise ValueError(f"{named}: rows {first} and {second} have the same key")

    def __len__(self) -> int:
        return len(self._sorted_N)

    def places(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """The place of each key, -1 for one that is not in the list.

        A key that is not in the list, but has the hash of one that is, gets that one's place: compare where it matters.
        """
        hashes_M = _hashes(keys)
        if len(self) == 0:
            return np.full(hashes_M.shape, -1, np.int64)
        nearest_M = np.searchsorted(self._sorted_N, hashes_M)
        nearest_M[nearest_M == len(self)] = 0
        return np.where(self._sorted_N[nearest_M] == hashes_M, self._order_N[nearest_M], -1)


def find_twice(path: Path, schema: pa.Schema, name: str) -> str | None:
    """A value that a column of strings holds twice, or None; 16 bytes a row."""
    hashes_N = np.sort(_hashes(column(path, schema, name)))
    suspects = set(hashes_N[1:][hashes_N[1:] == hashes_N[:-1]].tolist())
    seen: set[str] = set()
    for value in column(path, schema, name) if suspects else ():
        if value in seen:
            return str(value)
        if _hash(value) in suspects:
            seen.add(value)
    return None


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def _hashes(keys: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(_hash, keys), np.uint64)
