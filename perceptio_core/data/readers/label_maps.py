"""Data sets that label every pixel, by pictures of labels: COCO panoptic and ADE20K (its 150 classes, SceneParse150).

Like COCO instances they give one referring record per image and category, "Please segment {category} in this image." (ours):
for COCO a [SEG] per segment from left to right, for ADE20K one for all pixels of the class, which it does not tell apart.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceptio_core.data.images import open_with_format
from perceptio_core.data.readers.instances import text_of, whole_number
from perceptio_core.data.readers.json_rows import key_rows
from perceptio_core.data.records import SEGMENT_ANSWER, Record, Refused, Split, inside, segment_question
from perceptio_core.data.rle import encode
from perceptio_core.progress import track

ADE_CLASSES = "objectInfo150.txt"
ADE_PARTS = {"train": "training", "val": "validation"}
_STUFF_ENDINGS = ("-merged", "-other", "-stuff")


def panoptic_records(
    path: Path, *, source: str, split: Split, root: Path, images: str | None, max_objects: int
) -> Iterator[Record | Refused]:
    """Of a file such as ``panoptic_train2017.json``, with the folder of its name, which holds the label pictures, beside it.

    A category is left out where it has a crowd region or more than `max_objects` segments. An annotation is refused whose
    image or label picture is not there or lacks a segment. In memory are the names of all photographs, some 200 bytes each.

    Args:
        path: the file.
        source: name of the data set.
        split: of its records.
        root: the data root.
        images: folder of the photographs below `root`; None for ``images`` beside the file.
        max_objects: of a category in an image.

    Raises:
        ValueError: the file is absent or malformed.
    """
    photographs: dict[int, str] = {}
    names: dict[int, str] = {}
    for key, field, found in (("images", "file_name", photographs), ("categories", "name", names)):
        for number, row in enumerate(key_rows(path, key)):
            try:
                found[whole_number(row, "id", f"{key} {number}")] = text_of(row, field, f"{key} {number}")
            except ValueError as error:
                yield Refused(file=path.relative_to(root).as_posix(), reason=str(error))
    names = {number: _plain_name(name) for number, name in names.items()}
    folder = images if images is not None else (path.parent.relative_to(root) / "images").as_posix()
    annotations = key_rows(path, "annotations")
    for number, annotation in enumerate(track(annotations, label=f"{source} label pictures", unit="images")):
        try:
            name = photographs[annotation["image_id"]]
            file = Path(inside(path.with_suffix("").as_posix(), annotation["file_name"], named_in=path))
            labels_HW = _labels(file, mode="RGB")
            groups = list(_segments(annotation["segments_info"], labels_HW, names, max_objects=max_objects))
            image = inside(folder, name, named_in=path)
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"lacks or does not know {error}"
            yield Refused(file=f"{path.relative_to(root)}#annotation/{number}", reason=reason.replace(f"{root}/", ""))
            continue
        yield from _records(groups, image=image, source=source, split=split)


def ade_records(folder: Path, *, source: str, split: Split, root: Path) -> Iterator[Record | Refused]:
    """Of the folder ADEChallengeData2016 with images/, annotations/ and objectInfo150.txt.

    A label picture that cannot be read is refused. In memory are the names of all label pictures.

    Raises:
        ValueError: a folder or the list of classes is absent or malformed.
    """
    part = ADE_PARTS[split]
    names = _ade_names(folder / ADE_CLASSES)
    files = sorted((folder / "annotations" / part).glob("*.png"))
    for file in track(files, label=f"{source} label pictures", unit="images"):
        try:
            labels_HW = _labels(file, mode="L") & 255  # three equal channels
        except ValueError as error:
            yield Refused(file=file.relative_to(root).as_posix(), reason=str(error).replace(f"{file}: ", ""))
            continue
        groups = [(names[int(label)], [labels_HW == label]) for label in np.unique(labels_HW) if int(label) in names]
        image = (folder.relative_to(root) / "images" / part / f"{file.stem}.jpg").as_posix()
        yield from _records(groups, image=image, source=source, split=split)


Groups = Iterable[tuple[str, list[NDArray[np.bool_]]]]


def _records(groups: Groups, *, image: str, source: str, split: Split) -> Iterator[Record]:
    name = Path(image).stem
    for category, masks in groups:
        yield Record(
            record_id=f"{source}/{name}/{category}",
            image=image,
            image_name=name,
            split=split,
            task="referring",
            turns=((segment_question(category), SEGMENT_ANSWER),),
            expression=category,
            masks=tuple(encode(mask) for mask in masks),
            source=source,
        )


def _segments(
    segments: list[dict[str, Any]], labels_HW: NDArray[np.uint32], names: dict[int, str], *, max_objects: int
) -> Iterator[tuple[str, list[NDArray[np.bool_]]]]:
    """(category, masks from left to right) of an image."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for segment in segments:
        groups[names[segment["category_id"]]].append(segment)
    for category, some in sorted(groups.items()):
        if len(some) > max_objects or any(segment.get("iscrowd") for segment in some):
            continue
        masks = [labels_HW == segment["id"] for segment in some]
        if not all(mask.any() for mask in masks):
            raise ValueError(f"the label picture has no pixel of a segment of {category}")
        yield category, sorted(masks, key=lambda mask: int(mask.any(axis=0).argmax()))


def _labels(file: Path, *, mode: str) -> NDArray[np.uint32]:
    """Labels (H, W) of a picture: red + 256 green + 65536 blue.

    Raises:
        ValueError: it cannot be read, or is of another mode: the colours of a palette, for one, are not its labels.
    """
    opened = open_with_format(file)
    if opened.mode != mode:
        raise ValueError(f"{file}: a label picture of mode {opened.mode}; allowed is {mode}")
    channels_HW3 = np.asarray(opened.image, np.uint32)
    return np.asarray(channels_HW3 @ np.array([1, 256, 65536], np.uint32), np.uint32)


def _plain_name(name: str) -> str:
    """``wall-other-merged`` -> ``wall``: what COCO calls its stuff, as one would say it."""
    for ending in _STUFF_ENDINGS:
        name = name.removesuffix(ending)
    return name.replace("-", " ")


def _ade_names(path: Path) -> dict[int, str]:
    """Class names by number: the first of each line's synonyms."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        return {int(row["Idx"]): text_of(row, "Name", f"number {row['Idx']}").split(",")[0].strip() for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no list of classes with the columns Idx and Name: {error}") from error
