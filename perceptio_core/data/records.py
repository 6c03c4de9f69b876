"""What every reader of a data set turns its rows into; the same record goes on to the manifest and to the shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypedDict

Split = Literal["train", "val"]
Task = Literal["referring", "conversation", "marker", "depth_map"]

SEGMENT_ANSWER = "Sure, here it is."
"""The text after the perception tokens (Sa2VA's "Sure, it is [SEG]." without the token, which our grammar puts first)."""
_DESCRIBED = f"{SEGMENT_ANSWER.rstrip('.')}: {{}}."
DEPTH_MAP_QUESTION = "What is the depth map for the image?"
"""AURORA's prompt for the codes alone."""


def described_answer(description: str) -> str:
    """`SEGMENT_ANSWER` that goes on with what the thing is ("object descriptions", the paper; the form is ours)."""
    return _DESCRIBED.format(description.strip().rstrip(".").rstrip())


def segment_question(expression: str) -> str:
    """Sa2VA's prompt for the thing that the expression names."""
    return f"Please segment {expression} in this image."


class Point(NamedTuple):
    """A point of a picture: its letter, and its column x and row y in pixels."""

    letter: str
    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one row of a data set says about one image: a row of ``records.parquet``.

    Attributes:
        record_id: unique over all data sets.
        image: path of the image file relative to the data root, with forward slashes.
        image_name: how the data set calls the image, e.g. "000000000123"; becomes part of its key. None once it has one.
        image_key: of the image in the manifest; None until it has one (`perceptio_core.data.manifest.collect`).
        split: "train" or "val".
        task: "referring"; "marker" for a picture with circles drawn on it, whose answers say where they are; "depth_map" for
            the depth codes alone; "conversation" for everything else.
        turns: (question, answer) pairs.
        expression: for referring, what is to be segmented.
        masks: for referring, one compressed RLE per object.
        points: for marker, what is circled on the picture.
        source: name of the data set.
    """

    record_id: str
    image: str
    image_name: str | None = None
    image_key: str | None = None
    split: Split
    task: Task
    turns: tuple[tuple[str, str], ...]
    expression: str | None = None
    masks: tuple[dict[str, Any], ...] | None = None
    points: tuple[Point, ...] = ()
    source: str


@dataclass(frozen=True, kw_only=True)
class Refused:
    """One quarantined thing: the file (and the row in it) and why."""

    file: str
    reason: str


class Numbers(TypedDict):
    """What became of a data set's records: how many are kept, and how many were dropped by reason."""

    records: int
    dropped: dict[str, int]


def inside(folder: str, name: Any, *, named_in: Path) -> str:
    """`folder`/`name`, for a file name that comes from a data file.

    Raises:
        ValueError: the name is no relative path, or leads out of the folder; names the data file.
    """
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        raise ValueError(f"{named_in}: {name!r:.80} is not a file name")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{named_in}: {name!r:.200} leads out of the image folder")
    return (PurePosixPath(folder) / pure).as_posix()


def spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` of the items, evenly spread over them; all of them for None."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def is_spread(place: int, *, count: int, limit: int | None) -> bool:
    """Whether `spread` takes the item at this place (from 0) of `count`."""
    if limit is None or count <= limit:
        return True
    return -(-place * limit // count) * count // limit == place
