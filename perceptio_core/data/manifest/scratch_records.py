"""The records of a data set, read once and kept on disk until their images have keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from perceptio_core.data.manifest.manifest import RECORDS_SCHEMA, record_of, write_records
from perceptio_core.data.records import Record, Refused, is_spread
from perceptio_core.parquet import read_rows


class ScratchRecords:
    """A data set's records in a file.

    Args:
        path: the file, written at once.
        records: of the data set.
        dataset: file or folder of the data set, for messages.
        limit: at most this many are taken, evenly spread; None takes all.
        refuse: is told what is refused, meanwhile.

    Attributes:
        count: records that were read.

    Raises:
        ValueError: two records have the same id.
    """

    def __init__(
        self,
        path: Path,
        records: Iterable[Record | Refused],
        *,
        dataset: Path,
        limit: int | None,
        refuse: Callable[[Refused], None],
    ) -> None:
        self._path, self._limit = path, limit

        def texts() -> Iterator[Record]:
            for record in records:
                if isinstance(record, Refused):
                    refuse(record)
                elif _is_text(record):
                    yield record
                else:
                    name = f"{record.source}: {record.record_id}".encode(errors="backslashreplace").decode()
                    refuse(Refused(file=name, reason="it holds half a surrogate pair, which is no text"))

        self.count = write_records(path, texts(), named=dataset)

    def images(self) -> Iterator[dict[str, Any]]:
        """Of the records that are taken, {image, image_name, source, split}."""
        return self._taken(columns=("image", "image_name", "source", "split"))

    def records(self) -> Iterator[Record]:
        """The records that are taken."""
        return map(record_of, self._taken())

    def _taken(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        rows = read_rows(self._path, RECORDS_SCHEMA, columns=columns)
        return (row for place, row in enumerate(rows) if is_spread(place, count=self.count, limit=self._limit))


def _is_text(record: Record) -> bool:
    masks = (mask["counts"] for mask in record.masks or ())
    own = (record.record_id, record.image, record.image_name or "", record.source, record.expression or "")
    try:
        "".join(chain(own, *record.turns, masks)).encode()
    except UnicodeEncodeError:
        return False
    return True
