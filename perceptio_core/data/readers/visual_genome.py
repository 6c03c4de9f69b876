"""Regions of Visual Genome (arXiv 1602.07332) as conversations: what is in a box.

Official files: ``image_data.json`` [{image_id, url, width, height, ...}] and ``region_descriptions.json`` [{id, regions:
[{region_id, x, y, width, height, phrase}]}]; the pictures lie in ``VG_100K`` and ``VG_100K_2``, as their urls say. A box is
written as InternVL writes it, [[x1, y1, x2, y2]] in thousandths of width and height.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.data.readers.instances import text_of, whole_number
from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.records import Record, Refused, Split, inside, spread

IMAGES, REGIONS = "image_data.json", "region_descriptions.json"
FOLDERS = ("VG_100K", "VG_100K_2")
QUESTION = "What is in the region {}?"
"""Ours."""


def region_records(
    folder: Path, *, source: str, split: Split, root: Path, images: str | None, max_objects: int
) -> Iterator[Record | Refused]:
    """One record per image, a turn for each of at most `max_objects` of its regions, spread over them.

    In memory are file and size of each image, some 300 bytes, and the regions of one.
    A region whose box has no pixel in the image, or that says nothing, is refused; one that leaves the image in part is cut.

    Args:
        folder: with the two files.
        source: name of the data set.
        split: of its records; the files have none of their own.
        root: the data root.
        images: folder of VG_100K and VG_100K_2 below `root`; None for `folder`.
        max_objects: turns of a record.

    Raises:
        ValueError: a file is absent or no list.
    """
    pictures: dict[int, tuple[str, int, int]] = {}
    image_file, name = ((folder / file).relative_to(root) for file in (IMAGES, REGIONS))
    for number, row in enumerate(list_rows(folder / IMAGES, of="objects")):
        try:
            image_id, width, height = (whole_number(row, key, "the row") for key in ("image_id", "width", "height"))
            pictures[image_id] = text_of(row, "url", "the row"), width, height
        except ValueError as error:
            yield Refused(file=f"{image_file}#{number}", reason=str(error))
    image_folder = images if images is not None else folder.relative_to(root).as_posix()
    for number, row in enumerate(list_rows(folder / REGIONS, of="objects")):
        try:
            image_id = whole_number(row, "id", "the row")
            if image_id not in pictures:
                raise ValueError(f"image {image_id} is not in {IMAGES}, or refused there")
            url, *size = pictures[image_id]
            image = inside(image_folder, "/".join(PurePosixPath(url).parts[-2:]), named_in=folder / IMAGES)
            regions = row.get("regions")
            if not isinstance(regions, list):
                raise ValueError(f"regions must be a list, got {regions!r:.80}")
        except ValueError as error:
            yield Refused(file=f"{name}#{number}", reason=str(error))
            continue
        turns = []
        for region in spread(regions, max_objects):
            try:
                turns.append(_turn(region, *size))
            except ValueError as error:
                region_id = region.get("region_id") if isinstance(region, dict) else None
                yield Refused(file=f"{name}#{number}/{region_id}", reason=str(error))
        if turns:
            yield Record(
                record_id=f"{source}/{image_id}",
                image=image,
                image_name=str(image_id),
                split=split,
                task="conversation",
                turns=tuple(turns),
                source=source,
            )


def _turn(region: Any, width: int, height: int) -> tuple[str, str]:
    x, y, across, down = (whole_number(region, key, "the region") for key in ("x", "y", "width", "height"))
    phrase = text_of(region, "phrase", "the region").strip()
    left, top, right, bottom = max(0, x), max(0, y), min(width, x + across), min(height, y + down)
    if right <= left or bottom <= top:
        raise ValueError(f"the box {[left, top, right, bottom]} has no pixel in an image of {width} x {height}")
    box = [round(1000 * value / whole) for value, whole in zip((left, top, right, bottom), (width, height) * 2, strict=True)]
    return QUESTION.format([box]), phrase
