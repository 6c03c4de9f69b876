"""Which reader reads which kind of data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from perceptio_core.data.records import Record, Refused
from perceptio_core.params.sources import DatasetParams


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
