"""COCO instances as segmentation records: "Please segment {category} in this image.", one [SEG] per object (ours)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from perceptio_core.data.records import SEGMENT_ANSWER, Record, Refused, Split, inside, segment_question
from perceptio_core.data.refer import read_instances
from perceptio_core.data.rle import area, from_segmentation

IMAGE_FOLDER = "images"
"""Where the images lie below the folder of the data set unless the caller says otherwise."""


def coco_records(
    place: Path, *, source: str, split: Split, root: Path, images: str | None, max_objects: int
) -> tuple[list[Record], list[Refused]]:
    """One referring record per image and category, with all objects of the category from left to right.

    A category of an image is refused where it has a crowd region (its objects are not told apart there) or more than
    `max_objects` objects. Annotations with an unusable or empty mask are refused, and their category in that image with
    them: a record must name all objects.

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
    image_rows, annotations, categories = read_instances(path)
    image_folder = images if images is not None else (path.parent.relative_to(root) / IMAGE_FOLDER).as_posix()
    groups: dict[tuple[int, Any], list[int]] = defaultdict(list)
    for ann_id, annotation in sorted(annotations.items()):
        groups[annotation.get("image_id", -1), annotation.get("category_id")].append(ann_id)

    records, refused = [], []
    for (image_id, category_id), ann_ids in groups.items():
        image, category = image_rows.get(image_id), categories.get(category_id)
        if image is None or category is None:
            refused.append(
                Refused(
                    file=f"{path.relative_to(root)}#annotation/{ann_ids[0]}",
                    reason=f"image_id {image_id} or category_id {category_id} is not in the file",
                )
            )
            continue
        crowd = any(annotations[i].get("iscrowd") for i in ann_ids)
        if crowd or len(ann_ids) > max_objects:
            reason = "among them a crowd" if crowd else f"at most {max_objects} are asked for at once"
            refused.append(
                Refused(
                    file=f"{path.relative_to(root)}#image/{image_id}/category/{category_id}",
                    reason=f"{len(ann_ids)} objects of one kind ({category}), {reason}",
                )
            )
            continue
        placed = []
        for ann_id in ann_ids:
            try:
                mask = from_segmentation(annotations[ann_id].get("segmentation"), height=image["height"], width=image["width"])
                if area(mask) == 0:
                    raise ValueError("the mask is empty")
            except ValueError as error:
                refused.append(Refused(file=f"{path.relative_to(root)}#annotation/{ann_id}", reason=str(error)))
                break
            placed.append((_left(annotations[ann_id]), ann_id, mask))
        if len(placed) < len(ann_ids):
            continue
        records.append(
            Record(
                record_id=f"{source}/{image_id}/{category_id}",
                image=inside(image_folder, image["file_name"], named_in=path),
                image_name=f"{image_id:012d}",
                split=split,
                task="referring",
                turns=((segment_question(category), SEGMENT_ANSWER),),
                expression=category,
                masks=tuple(mask for _, _, mask in sorted(placed, key=lambda entry: entry[:2])),
                source=source,
            )
        )
    return sorted(records, key=lambda record: record.record_id), refused


def _left(annotation: dict[str, Any]) -> float:
    box = annotation.get("bbox")
    return float(box[0]) if isinstance(box, list) and box and isinstance(box[0], int | float) else 0.0
