"""An entry of a shard: one picture with all that is said about it, and the training samples that are read from it.

In the tar it is two members: the encoded picture, and a JSON object {schema, image_key, width, height, depth_codes,
annotations}. An annotation has the fields of `Annotation` and is one training sample.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from PIL import Image

from perceptio_core.data.images import MAX_PIXELS, open_with_format
from perceptio_core.data.records import Point
from perceptio_core.data.shards.marker_drawing import draw_markers

SCHEMA_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What one training sample says about its picture.

    Attributes:
        record_id: of the record that it is made from; of several, joined by "+".
        task: "referring", "conversation", "marker" or "depth_map".
        source: name of the data set, or "teacher_depth".
        turns: (question, answer) pairs.
        masks: one compressed RLE per object to segment, at the picture's size.
        mask_turns: of each mask, the turn that asks for it (from 0), ascending.
        points: of marker samples, the circled points, in pixels of the picture.
        draw_points: whether the circles have yet to be drawn; else the picture came with them.
    """

    record_id: str
    task: str
    source: str
    turns: Sequence[tuple[str, str]]
    masks: Sequence[dict[str, Any]] = ()
    mask_turns: Sequence[int] = ()
    points: Sequence[Point] = ()
    draw_points: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values in the form of the manifest's columns: a turn is {question, answer}, a point {letter, x, y}."""
        turns = [{"question": question, "answer": answer} for question, answer in self.turns]
        said = {field.name: getattr(self, field.name) for field in fields(Annotation)}
        return said | {"turns": turns, "points": [point._asdict() for point in self.points]}


@dataclass(frozen=True, kw_only=True)
class Sample(Annotation):
    """One training sample.

    Attributes:
        key: its place in the shards: the picture's key, a slash and the number of the annotation, as in
            "train-00003-000017/2".
        image_key: of the picture in the manifest.
        image: RGB, as the model is to see it, with its circles.
        depth_codes: the N codes of the picture without drawn circles, row-major.
    """

    key: str
    image_key: str
    image: Image.Image
    depth_codes: Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry before it is written.

    Attributes:
        image: bytes of the encoded picture.
        extension: "jpg" or "png".
        image_key: of the picture in the manifest.
        width: of the upright picture, pixels.
        height: of the upright picture, pixels.
        depth_codes: of the picture, row-major.
        annotations: at least one.
    """

    image: bytes
    extension: Literal["jpg", "png"]
    image_key: str
    width: int
    height: int
    depth_codes: Sequence[int]
    annotations: Sequence[Annotation]

    def to_json(self) -> bytes:
        """The JSON member; the same entry gives the same bytes."""
        content = {
            "schema": SCHEMA_VERSION,
            "image_key": self.image_key,
            "width": self.width,
            "height": self.height,
            "depth_codes": self.depth_codes,
            "annotations": [annotation.to_json() for annotation in self.annotations],
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def entry_key(shard: str, number: int) -> str:
    """The key that webdataset gives an entry."""
    return f"{shard}-{number:06d}"


def sample_key(entry: str, annotation: int) -> str:
    """The key of a training sample: its entry's, and the number of the annotation."""
    return f"{entry}/{annotation}"


_NAMES = [field.name for field in fields(Annotation)]


def read_annotation(content: dict[str, Any], number: int) -> Annotation:
    """The annotation with this number of an entry's JSON object."""
    return Annotation(**_values(content, number))


def read_sample(content: dict[str, Any], number: int, *, image: bytes, key: str, max_pixels: int = MAX_PIXELS) -> Sample:
    """The training sample with this number of an entry: the decoded picture, with its circles.

    Args:
        content: the entry's JSON object.
        number: of the annotation, from 0.
        image: bytes of the encoded picture.
        key: of the sample.
        max_pixels: a larger picture is refused before it is decoded.

    Raises:
        ValueError, KeyError, TypeError, IndexError: picture or JSON are not as `Entry` writes them.
    """
    values = _values(content, number)
    picture = open_with_format(image, max_pixels=max_pixels, name="image").image
    if values["draw_points"]:
        picture = draw_markers(picture, values["points"])
    return Sample(key=key, image_key=content["image_key"], image=picture, depth_codes=content["depth_codes"], **values)


def _values(content: dict[str, Any], number: int) -> dict[str, Any]:
    said = content["annotations"][number]
    values = {name: said[name] for name in _NAMES}
    values["turns"] = [(turn["question"], turn["answer"]) for turn in said["turns"]]
    values["points"] = [Point(**point) for point in said["points"]]
    return values
