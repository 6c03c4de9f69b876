"""The records of a data set, read once and kept on disk until their images have keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from perceptio_core.data.manifest.manifest import RECORDS_SCHEMA, RecordRow
from perceptio_core.data.readers.aurora import aurora_records
from perceptio_core.data.readers.coco import coco_records
from perceptio_core.data.readers.gcg import gcg_records
from perceptio_core.data.readers.grefer import grefer_records
from perceptio_core.data.readers.label_maps import ade_records, panoptic_records
from perceptio_core.data.readers.llava import llava_records
from perceptio_core.data.readers.own_split import of_split
from perceptio_core.data.readers.questions import question_records
from perceptio_core.data.readers.refer import refer_records
from perceptio_core.data.readers.visual_genome import region_records
from perceptio_core.data.records import Owner, Record, Refused, is_spread
from perceptio_core.params.sources import DatasetParams
from perceptio_core.tables import find_twice, read_rows, write_rows

_NAME = "image_name"
_SCHEMA = pa.schema([*RECORDS_SCHEMA, (_NAME, pa.string())])
_PLACE = ("image_key", _NAME)


def read_dataset(dataset: DatasetParams, *, root: Path) -> Iterator[Record | Refused]:
    """The records of one data set, by its kind, and what is refused of it, as they come.

    Raises:
        ValueError: its files are absent or malformed.
    """
    if dataset.validation_share is not None:
        whole = dataset.model_copy(update={"validation_share": None})
        return of_split(read_dataset(whole, root=root), split=dataset.split, share=dataset.validation_share)
    path = root / dataset.path
    where: dict[str, Any] = {"source": dataset.name, "split": dataset.split, "root": root}
    if dataset.kind == "ade20k":
        return ade_records(path, **where)
    where["images"] = dataset.images
    if dataset.kind == "refer":
        descriptions = None if dataset.descriptions is None else root / dataset.descriptions
        return refer_records(path, split_by=dataset.split_by, descriptions=descriptions, **where)
    if dataset.kind in ("coco", "panoptic", "vg"):
        read_objects = {"coco": coco_records, "panoptic": panoptic_records, "vg": region_records}[dataset.kind]
        return read_objects(path, max_objects=dataset.max_objects, **where)
    if dataset.kind == "questions":
        return question_records(path, masks=dataset.masks, **where)
    read = {"grefer": grefer_records, "gcg": gcg_records, "llava": llava_records, "aurora": aurora_records}[dataset.kind]
    return read(path, **where)


class Spill:
    """A data set's records in a file.

    Args:
        path: the file, written at once.
        records: of the data set.
        limit: at most this many are taken, evenly spread; None takes all.
        refuse: is told what is refused, meanwhile.

    Attributes:
        count: records that were read.
    """

    def __init__(
        self, path: Path, records: Iterable[Record | Refused], *, limit: int | None, refuse: Callable[[Refused], None]
    ) -> None:
        self._path, self._limit = path, limit

        def rows() -> Iterator[dict[str, Any]]:
            for record in records:
                if isinstance(record, Refused):
                    refuse(record)
                    continue
                row = RecordRow.of(record, image_key=record.image).to_table() | {_NAME: record.image_name}
                if all(_is_text(value) for value in row.values() if value is not None):
                    yield row
                else:
                    name = f"{record.source}: {record.record_id}".encode(errors="backslashreplace").decode()
                    refuse(Refused(file=name, reason="it holds half a surrogate pair, which is no text"))

        self.count = write_rows(path, _SCHEMA, rows(), compression="zstd")

    def find_twice(self) -> str | None:
        """A record id that stands twice."""
        return find_twice(self._path, _SCHEMA, "record_id")

    def owners(self) -> Iterator[Owner]:
        """The images of the records that are taken."""
        columns = [*_PLACE, "source", "split"]
        for place, row in enumerate(read_rows(self._path, _SCHEMA, columns=columns)):
            if self._takes(place):
                yield Owner(path=row["image_key"], name=row[_NAME], source=row["source"], split=row["split"])

    def rows(self) -> Iterator[RecordRow]:
        """The records that are taken; the `image_key` of each is still the path of its image."""
        for place, row in enumerate(read_rows(self._path, _SCHEMA)):
            if self._takes(place):
                del row[_NAME]
                yield RecordRow.from_table(row)

    def _takes(self, place: int) -> bool:
        return is_spread(place, count=self.count, limit=self._limit)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
