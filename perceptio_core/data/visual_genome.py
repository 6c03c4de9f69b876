"""Regions of Visual Genome (arXiv 1602.07332) as conversations: what is in a box.

Official files: ``image_data.json`` [{image_id, url, width, height, ...}] and ``region_descriptions.json`` [{id, regions:
[{region_id, x, y, width, height, phrase}]}]; the pictures lie in ``VG_100K`` and ``VG_100K_2``, as their urls say. A box is
written as InternVL writes it, [[x1, y1, x2, y2]] in thousandths of width and height.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.data.json_rows import list_rows
from perceptio_core.data.records import Record, Refused, Split, inside, spread

IMAGES, REGIONS = "image_data.json", "region_descriptions.json"
PICTURE = ("url", "width", "height")
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
        ValueError: a file is absent or no list of objects.
    """
    pictures: dict[int, tuple[Any, ...]] = {
        row["image_id"]: tuple(row.get(key) for key in PICTURE)
        for row in _rows(folder / IMAGES)
        if isinstance(row.get("image_id"), int)
    }
    image_folder = images if images is not None else folder.relative_to(root).as_posix()
    name = (folder / REGIONS).relative_to(root)
    for number, row in enumerate(_rows(folder / REGIONS)):
        try:
            url, width, height = pictures[row["id"]]
            image = inside(image_folder, "/".join(PurePosixPath(url).parts[-2:]), named_in=folder / IMAGES)
            size = int(width), int(height)
            regions = list(row["regions"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            yield Refused(file=f"{name}#{number}", reason=f"no image, size or regions: {error}")
            continue
        turns = []
        for region in spread(regions, max_objects):
            try:
                turns.append(_turn(region, *size))
            except (ValueError, KeyError, TypeError) as error:
                region_id = region.get("region_id") if isinstance(region, dict) else None
                yield Refused(file=f"{name}#{number}/{region_id}", reason=str(error))
        if turns:
            yield Record(
                record_id=f"{source}/{row['id']}",
                image=image,
                image_name=str(row["id"]),
                split=split,
                task="conversation",
                turns=tuple(turns),
                source=source,
            )


def _turn(region: dict[str, Any], width: int, height: int) -> tuple[str, str]:
    left, top = max(0, region["x"]), max(0, region["y"])
    right, bottom = min(width, region["x"] + region["width"]), min(height, region["y"] + region["height"])
    phrase = region["phrase"].strip() if isinstance(region["phrase"], str) else ""
    if right <= left or bottom <= top or not phrase:
        raise ValueError(f"the box {[left, top, right, bottom]} has no pixel in an image of {width} x {height}, or no phrase")
    box = [round(1000 * value / whole) for value, whole in zip((left, top, right, bottom), (width, height) * 2, strict=True)]
    return QUESTION.format([box]), phrase


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in list_rows(path, of="objects"):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: expected a list of objects, got {row!r} in it"[:300])
        yield row
