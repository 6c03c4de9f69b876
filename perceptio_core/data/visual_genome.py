"""Regions of Visual Genome (arXiv 1602.07332) as conversations: what is in a box.

Official files: ``image_data.json`` [{image_id, url, width, height, ...}] and ``region_descriptions.json`` [{id, regions:
[{region_id, x, y, width, height, phrase}]}]; the pictures lie in ``VG_100K`` and ``VG_100K_2``, as their urls say. A box is
written as InternVL writes it, [[x1, y1, x2, y2]] in thousandths of width and height.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.data.records import Record, Refused, Split, inside, spread

IMAGES, REGIONS = "image_data.json", "region_descriptions.json"
FOLDERS = ("VG_100K", "VG_100K_2")
QUESTION = "What is in the region {}?"
"""Ours."""


def region_records(
    folder: Path, *, source: str, split: Split, root: Path, images: str | None, max_objects: int
) -> tuple[list[Record], list[Refused]]:
    """One record per image, a turn for each of at most `max_objects` of its regions, spread over them.

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
    pictures = {row["image_id"]: row for row in _rows(folder / IMAGES) if isinstance(row.get("image_id"), int)}
    image_folder = images if images is not None else folder.relative_to(root).as_posix()
    name = (folder / REGIONS).relative_to(root)
    records: list[Record] = []
    refused: list[Refused] = []
    for number, row in enumerate(_rows(folder / REGIONS)):
        try:
            picture = pictures[row["id"]]
            image = inside(image_folder, "/".join(PurePosixPath(picture["url"]).parts[-2:]), named_in=folder / IMAGES)
            size = int(picture["width"]), int(picture["height"])
            regions = list(row["regions"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            refused.append(Refused(file=f"{name}#{number}", reason=f"no image, size or regions: {error}"))
            continue
        turns = []
        for region in spread(regions, max_objects):
            try:
                turns.append(_turn(region, *size))
            except (ValueError, KeyError, TypeError) as error:
                region_id = region.get("region_id") if isinstance(region, dict) else None
                refused.append(Refused(file=f"{name}#{number}/{region_id}", reason=str(error)))
        if turns:
            records.append(
                Record(
                    record_id=f"{source}/{row['id']}",
                    image=image,
                    image_name=str(row["id"]),
                    split=split,
                    task="conversation",
                    turns=tuple(turns),
                    source=source,
                )
            )
    return records, refused


def _turn(region: dict[str, Any], width: int, height: int) -> tuple[str, str]:
    left, top = max(0, region["x"]), max(0, region["y"])
    right, bottom = min(width, region["x"] + region["width"]), min(height, region["y"] + region["height"])
    phrase = region["phrase"].strip() if isinstance(region["phrase"], str) else ""
    if right <= left or bottom <= top or not phrase:
        raise ValueError(f"the box {[left, top, right, bottom]} has no pixel in an image of {width} x {height}, or no phrase")
    box = [round(1000 * value / whole) for value, whole in zip((left, top, right, bottom), (width, height) * 2, strict=True)]
    return QUESTION.format([box]), phrase


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            rows = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects")
    return rows
