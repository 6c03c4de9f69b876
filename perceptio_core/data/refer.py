"""RefCOCO / RefCOCO+ / RefCOCOg in the official REFER layout: ``refs(<split_by>).p`` and ``instances.json``.

The references are pickles of Python 2. A pickle can run any program, so they are read by an unpickler that knows plain
containers, strings and numbers and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptio_core.data.records import SEGMENT_ANSWER, Record, Split, inside, segment_question
from perceptio_core.data.rle import from_segmentation

__all__ = ["IMAGE_FOLDER", "Expression", "read_plain_pickle", "read_refer", "refer_records", "segment_question"]

IMAGE_FOLDER = "images/mscoco/images/train2014"
"""Where the images lie below the folder of the data set unless the caller says otherwise."""


class _PlainUnpickler(pickle.Unpickler):
    """Lists, dicts, tuples, sets, strings, bytes, numbers; nothing that has to be imported."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for the object {module}.{name}; only plain containers are admitted")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it asks for the persistent object {pid!r}; only plain containers are admitted")


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of plain containers; byte strings of Python 2 become text by Latin-1.

    Raises:
        ValueError: the file is absent, no whole pickle, or asks for any object that has to be imported; names the file
            and that object.
    """
    try:
        with path.open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a broken pickle raises nearly anything
        raise ValueError(f"{path}: refused as a pickle: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One sentence of one reference.

    Attributes:
        ref_id, sent_id, ann_id, image_id: the official numbers.
        split: "train", "val", "testA", "testB" or "test".
        sentence: the expression, as the official field `sent` has it.
        category: name of the object's category.
        image_file: path below the folder of the data set.
        mask: compressed RLE at the image's size; polygons are merged by union.
    """

    ref_id: int
    sent_id: int
    ann_id: int
    image_id: int
    split: str
    sentence: str
    category: str
    image_file: str
    mask: dict[str, Any]


def read_refer(folder: Path, *, split_by: str | None = None, image_folder: str = IMAGE_FOLDER) -> list[Expression]:
    """Read all expressions of all splits, in the order of the references.

    Args:
        folder: holds ``refs(<split_by>).p`` and ``instances.json``.
        split_by: "unc", "umd" or "google"; None where the folder has one file of references.
        image_folder: of the image files, below `folder`.

    Raises:
        ValueError: a file is absent or malformed, or names something that is not there; names file, key and value.
    """
    refs_path, instances_path = _refs_path(folder, split_by), folder / "instances.json"
    refs = read_plain_pickle(refs_path)
    if not isinstance(refs, list):
        raise ValueError(f"{refs_path}: expected a list of references, got {type(refs).__name__}")
    images, annotations, categories = read_instances(instances_path)
    masks: dict[int, dict[str, Any]] = {}
    expressions = []
    for row, ref in enumerate(refs):
        where = f"{refs_path}: reference {row}"
        ann_id, image_id = _whole(ref, "ann_id", where), _whole(ref, "image_id", where)
        if ann_id not in annotations or image_id not in images:
            raise ValueError(f"{where}: ann_id {ann_id} or image_id {image_id} is not in {instances_path}")
        image, annotation = images[image_id], annotations[ann_id]
        category_id = annotation.get("category_id")
        if ann_id not in masks:
            try:
                masks[ann_id] = from_segmentation(annotation.get("segmentation"), height=image["height"], width=image["width"])
            except ValueError as error:
                raise ValueError(f"{instances_path}: annotation {ann_id}: {error}") from error
        # The references' own file_name is that of a cut-out; the image's name stands in instances.json.
        image_file = inside(image_folder, image["file_name"], named_in=instances_path)
        split, sentences = ref.get("split"), ref.get("sentences")
        if not isinstance(split, str) or not isinstance(sentences, list):
            raise ValueError(f"{where}: split must be a text and sentences a list")
        for sentence in sentences:
            sent_id = _whole(sentence, "sent_id", where)
            text = sentence.get("sent")
            if not isinstance(text, str):
                raise ValueError(f"{where}: sentence {sent_id}: sent must be a text, got {text!r}")
            expressions.append(
                Expression(
                    ref_id=_whole(ref, "ref_id", where),
                    sent_id=sent_id,
                    ann_id=ann_id,
                    image_id=image_id,
                    split=split,
                    sentence=text,
                    category=categories.get(category_id, "object") if isinstance(category_id, int) else "object",
                    image_file=image_file,
                    mask=masks[ann_id],
                )
            )
    return expressions


def read_instances(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]], dict[Any, str]]:
    """Images by id, annotations by id and category names by id of a file in COCO's `instances` format.

    Raises:
        ValueError: absent, not JSON, without these lists, or with an id that stands for two different things; names the file
            and the key.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{path}: {key} must be a list")
    images = _by_id(content["images"], f"{path}: images")
    for image_id, image in images.items():
        for key in ("height", "width"):
            if _whole(image, key, f"{path}: image {image_id}") < 1:
                raise ValueError(f"{path}: image {image_id}: {key} must be at least 1")
        if not isinstance(image.get("file_name"), str):
            raise ValueError(f"{path}: image {image_id}: file_name must be a text")
    annotations = _by_id(content["annotations"], f"{path}: annotations")
    named = [c for c in content["categories"] if isinstance(c, dict) and isinstance(c.get("id"), int)]
    categories = {c["id"]: str(c.get("name", "object")) for c in named}
    return images, annotations, categories


def _by_id(rows: list[Any], where: str) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        number = _whole(row, "id", where)
        if found.setdefault(number, row) != row:
            raise ValueError(f"{where}: the id {number} stands twice, with different content")
    return found


def refer_records(
    folder: Path, *, source: str, split: Split, split_by: str | None, root: Path, images: str | None
) -> list[Record]:
    """One referring record per expression of one split; `folder` and `images` lie below `root`."""
    image_folder = images if images is not None else (folder.relative_to(root) / IMAGE_FOLDER).as_posix()
    return [
        Record(
            record_id=f"{source}/{expression.ref_id}/{expression.sent_id}",
            image=expression.image_file,
            image_name=f"{expression.image_id:012d}",
            split=split,
            task="referring",
            turns=((segment_question(expression.sentence), SEGMENT_ANSWER),),
            expression=expression.sentence,
            masks=(expression.mask,),
            source=source,
        )
        for expression in read_refer(folder, split_by=split_by, image_folder=image_folder)
        if expression.split == split
    ]


def _refs_path(folder: Path, split_by: str | None) -> Path:
    found = sorted(folder.glob("refs(*).p"))
    if split_by is not None:
        path = folder / f"refs({split_by}).p"
        if path not in found:
            raise ValueError(f"{path} is absent; {folder} has {[file.name for file in found]}")
        return path
    if len(found) != 1:
        raise ValueError(f"{folder}: expected one refs(*).p or a split_by, found {[file.name for file in found]}")
    return found[0]


def _whole(row: Any, key: str, where: str) -> int:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: {key} must be a whole number, got {value!r}")
    return value
