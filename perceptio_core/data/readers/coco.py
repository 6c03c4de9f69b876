"""COCO instances as segmentation records: "Please segment {category} in this image.", one [SEG] per object (ours)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.readers.instances import read_instances
from perceptio_core.data.records import SEGMENT_ANSWER, Record, Refused, Split, inside, segment_question
from perceptio_core.data.rle import area, from_segmentation

IMAGE_FOLDER = "images"
"""Where the images lie below the folder of the data set unless the caller says otherwise."""
_LONGEST_NAME = 41  # of an image and a category: two numbers of 64 bits


def coco_records(
    place: Path, *, source: str, split: Split, root: Path, images: str | None, max_objects: int
) -> Iterator[Record | Refused]:
    """One referring record per image and category, with all objects of the category from left to right.

    A category of an image is refused where it has a crowd region (its objects are not told apart there) or more than
    `max_objects` objects. Annotations with an unusable or empty mask are refused, and their category in that image with
    them: a record must name all objects. Records come in the order of their ids. In memory are some numbers an annotation,
    about 100 bytes.

    Args:
        place: a file such as ``instances_train2017.json``, or a folder with ``instances.json``.
        source: name of the data set.
        split: of its records.
        root: the data root.
        images: folder of the images below `root`; None for ``images`` beside the file.
        max_objects: of a category in an image.

    Raises:
        ValueError: the file is absent or malformed.
    """
    path = place if place.suffix == ".json" else place / "instances.json"
    name = path.relative_to(root)
    incomplete: set[tuple[int, int]] = set()
    bad: list[Refused] = []

    def refuse(row: Any, told: str) -> None:
        bad.append(Refused(file=name.as_posix(), reason=told))
        about = (row.get("image_id"), row.get("category_id")) if isinstance(row, dict) else (None, None)
        if isinstance(about[0], int) and isinstance(about[1], int):
            incomplete.add((about[0], about[1]))

    image_rows, annotations, categories = read_instances(path, refuse=refuse)
    yield from bad
    image_folder = images if images is not None else (path.parent.relative_to(root) / IMAGE_FOLDER).as_posix()
    known = array("q")
    for ann_id, annotation in annotations.items():
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if type(image_id) is int and image_id in image_rows and type(category_id) is int and category_id in categories:
            known.extend((image_id, category_id, ann_id))
        else:
            reason = f"image_id {image_id!r:.80} or category_id {category_id!r:.80} is not in the file"
            yield Refused(file=f"{name}#annotation/{ann_id}", reason=reason)
    for image_id, category_id, ann_ids in _groups(known):
        image, category = image_rows[image_id], categories[category_id]
        objects = {ann_id: annotations[ann_id] for ann_id in ann_ids}
        crowd = any(annotation.get("iscrowd") for annotation in objects.values())
        unknown = (image_id, category_id) in incomplete
        if crowd or unknown or len(objects) > max_objects:
            reason = "among them a crowd" if crowd else f"at most {max_objects} are asked for at once"
            reason = "and one more that cannot be used" if unknown else reason
            yield Refused(
                file=f"{name}#image/{image_id}/category/{category_id}",
                reason=f"{len(objects)} objects of one kind ({category}), {reason}",
            )
            continue
        masks = []
        for ann_id, annotation in sorted(objects.items(), key=lambda entry: (_left(entry[1]), entry[0])):
            try:
                mask = from_segmentation(annotation.get("segmentation"), height=image["height"], width=image["width"])
                if area(mask) == 0:
                    raise ValueError("the mask is empty")
            except ValueError as error:
                yield Refused(file=f"{name}#annotation/{ann_id}", reason=str(error))
                break
            masks.append(mask)
        try:
            file = inside(image_folder, image["file_name"], named_in=path)
        except ValueError as error:
            yield Refused(file=f"{name}#image/{image_id}", reason=str(error))
            continue
        if len(masks) == len(objects):
            yield Record(
                record_id=f"{source}/{image_id}/{category_id}",
                image=file,
                image_name=f"{image_id:012d}",
                split=split,
                task="referring",
                turns=((segment_question(category), SEGMENT_ANSWER),),
                expression=category,
                masks=tuple(masks),
                source=source,
            )


def _groups(known: array[int]) -> Iterator[tuple[int, int, list[int]]]:
    """(image, category, its annotations) in the order of the records' ids, which is that of texts.

    Args:
        known: image, category and annotation, one after the other, for each annotation.
    """
    known_N3 = np.frombuffer(known, np.int64).reshape(-1, 3)
    names_N = np.fromiter((f"{image}/{category}" for image, category, _ in known_N3), f"S{_LONGEST_NAME}")
    order_N = np.lexsort((known_N3[:, 2], names_N))
    new_N = np.r_[True, names_N[order_N][1:] != names_N[order_N][:-1]][: len(order_N)]
    ends = np.append(np.flatnonzero(new_N), len(order_N))
    for start, end in pairwise(ends):
        rows = known_N3[order_N[start:end]]
        yield int(rows[0, 0]), int(rows[0, 1]), rows[:, 2].tolist()


def _left(annotation: Mapping[str, Any]) -> float:
    box = annotation.get("bbox")
    return float(box[0]) if isinstance(box, list) and box and isinstance(box[0], int | float) else 0.0
