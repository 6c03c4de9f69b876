"""Grounded conversations in the form of GranD-f (arXiv 2311.03356): a caption, and masks for the phrases in it.

Rows of {image_id, file_name, caption, groundings: {phrase: {token_positives: [start, end], rle_masks: [RLE, ...]}}}, as in
``OpenPsgGCG_train.json``. The answer marks its phrases, ``<p> a dog </p>``; the masks stand before it, one [SEG] a phrase, in
their order there: GLaMM writes each [SEG] behind its phrase, our grammar puts perception first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.records import Record, Refused, Split, inside
from perceptio_core.data.rle import decode, encode, from_segmentation

QUESTION = "Please describe this image and segment everything that you name."
"""Ours."""


def gcg_records(path: Path, *, source: str, split: Split, root: Path, images: str | None) -> Iterator[Record | Refused]:
    """One record per row; image names are relative to `images` below `root`, by default to the file's folder.

    A row is refused when its caption or a mask cannot be used, when phrases overlap, or when it has none.

    Raises:
        ValueError: the file is absent or not a JSON list.
    """
    folder = images if images is not None else path.parent.relative_to(root).as_posix()
    for number, row in enumerate(list_rows(path, of="captions with groundings")):
        try:
            if not isinstance(row, dict):
                raise ValueError("the row is not an object")
            image = inside(folder, row.get("file_name"), named_in=path)
            answer, phrases, masks = _grounded(row)
        except ValueError as error:
            yield Refused(file=f"{path.relative_to(root)}#{number}", reason=str(error))
            continue
        yield Record(
            record_id=f"{source}/{number}",
            image=image,
            image_name=Path(row["file_name"]).stem,
            split=split,
            task="referring",
            turns=((QUESTION, answer),),
            expression=", ".join(phrases),
            masks=tuple(masks),
            source=source,
        )


def _grounded(row: dict[str, Any]) -> tuple[str, list[str], list[dict[str, Any]]]:
    """The caption with its phrases marked, the phrases, and a mask for each."""
    caption, groundings = row.get("caption"), row.get("groundings")
    if not isinstance(caption, str) or not isinstance(groundings, dict) or not groundings:
        raise ValueError("caption must be a text, groundings an object that is not empty")
    places = []
    for phrase, grounding in groundings.items():
        try:
            start, end = grounding["token_positives"]
            if type(start) is not int or type(end) is not int:
                raise TypeError
            places.append((start, end, phrase, list(grounding["rle_masks"])))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"phrase {phrase!r} needs token_positives [start, end], two whole numbers, and rle_masks"
            ) from error
    text, done, phrases, masks = "", 0, [], []
    for start, end, phrase, parts in sorted(places, key=lambda place: place[:2]):
        if not done <= start < end <= len(caption):
            raise ValueError(f"phrase {phrase!r} at {start} to {end} overlaps another or lies outside of the caption")
        text += f"{caption[done:start]}<p> {caption[start:end]} </p>"
        done = end
        phrases.append(caption[start:end])
        masks.append(_union(parts, phrase))
    return (text + caption[done:]).strip(), phrases, masks


def _union(parts: list[Any], phrase: str) -> dict[str, Any]:
    sizes = [part.get("size") if isinstance(part, dict) else None for part in parts]
    size = sizes[0] if sizes else None
    if not isinstance(size, list) or [type(side) for side in size] != [int, int] or any(other != size for other in sizes):
        raise ValueError(f"phrase {phrase!r}: rle_masks must be run lengths of one size")
    height, width = size
    checked = [from_segmentation(part, height=height, width=width) for part in parts]  # before there is an array of this size
    return encode(np.logical_or.reduce([decode(part) for part in checked]))
