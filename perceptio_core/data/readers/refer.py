"""RefCOCO / RefCOCO+ / RefCOCOg in the official REFER layout: ``refs(<split_by>).p`` and ``instances.json``.

The references are pickles of Python 2. A pickle can run any program, so they are read by an unpickler that knows plain
containers, strings and numbers and refuses everything else. A pickle is read whole: all references of the file are in memory,
some 2 kB each; what they refer to is looked up on disk (`perceptio_core.data.readers.instances`).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptio_core.data.readers.instances import RowsById, read_instances, text_of, whole_number
from perceptio_core.data.records import SEGMENT_ANSWER, Record, Refused, Split, described_answer, inside, segment_question
from perceptio_core.data.rle import from_segmentation
from perceptio_core.jsonl import objects

__all__ = ["IMAGE_FOLDER", "Expression", "read_plain_pickle", "read_refer", "refer_records", "segment_question"]

IMAGE_FOLDER = "images/mscoco/images/train2014"
"""Where the images lie below the folder of the data set unless the caller says otherwise."""


_LONGEST_DESCRIPTION = 1000


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


def read_refer(folder: Path, *, split_by: str | None = None, image_folder: str = IMAGE_FOLDER) -> Iterator[Expression]:
    """Read all expressions of all splits, in the order of the references.

    Args:
        folder: holds ``refs(<split_by>).p`` and ``instances.json``.
        split_by: "unc", "umd" or "google"; None where the folder has one file of references.
        image_folder: of the image files, below `folder`.

    Raises:
        ValueError: a file is absent or malformed, or names something that is not there; names file, key and value.
    """
    refs_path, refs = _references(folder, split_by)
    instances = read_instances(folder / "instances.json")
    for row, ref in enumerate(refs):
        for expression in _expressions(
            ref, instances, folder=folder, image_folder=image_folder, where=f"{refs_path}: reference {row}"
        ):
            if isinstance(expression, str):
                raise ValueError(expression)
            yield expression


def _references(folder: Path, split_by: str | None) -> tuple[Path, list[Any]]:
    path = _refs_path(folder, split_by)
    refs = read_plain_pickle(path)
    if not isinstance(refs, list):
        raise ValueError(f"{path}: expected a list of references, got {type(refs).__name__}")
    return path, refs


def _expressions(
    ref: Any, instances: tuple[RowsById, RowsById, dict[int, str]], *, folder: Path, image_folder: str, where: str
) -> Iterator[Expression | str]:
    """The expressions of a reference; of each that cannot be used, or of all of them, what is wrong."""
    images, annotations, categories = instances
    path = folder / "instances.json"
    try:
        ref_id, ann_id, image_id = (whole_number(ref, key, where) for key in ("ref_id", "ann_id", "image_id"))
        image, annotation = images.get(image_id), annotations.get(ann_id)
        if image is None or annotation is None:
            raise ValueError(f"{where}: ann_id {ann_id} or image_id {image_id} is not in {path}")
        category_id = annotation.get("category_id")
        try:
            mask = from_segmentation(annotation.get("segmentation"), height=image["height"], width=image["width"])
        except ValueError as error:
            raise ValueError(f"{path}: annotation {ann_id}: {error}") from error
        # The references' own file_name is that of a cut-out; the image's name stands in instances.json.
        image_file = inside(image_folder, image["file_name"], named_in=path)
        split, sentences = ref.get("split"), ref.get("sentences")
        if not isinstance(split, str) or not isinstance(sentences, list):
            raise ValueError(f"{where}: split must be a text and sentences a list")
    except ValueError as error:
        yield str(error)
        return
    for sentence in sentences:
        try:
            sent_id = whole_number(sentence, "sent_id", where)
            text = sentence.get("sent")
            if not isinstance(text, str):
                raise ValueError(f"{where}: sentence {sent_id}: sent must be a text, got {text!r:.80}")
        except ValueError as error:
            yield str(error)
            continue
        yield Expression(
            ref_id=ref_id,
            sent_id=sent_id,
            ann_id=ann_id,
            image_id=image_id,
            split=split,
            sentence=text,
            category=categories.get(category_id, "object") if isinstance(category_id, int) else "object",
            image_file=image_file,
            mask=mask,
        )


def refer_records(
    folder: Path,
    *,
    source: str,
    split: Split,
    split_by: str | None,
    root: Path,
    images: str | None,
    descriptions: Path | None = None,
) -> Iterator[Record | Refused]:
    """One referring record per expression of one split; `folder` and `images` lie below `root`.

    References and expressions that cannot be used are refused, and so are lines of `descriptions`, whose object then goes
    without a description.

    Raises:
        ValueError: a file is absent or malformed as a whole.
    """
    refs_path, refs = _references(folder, split_by)
    bad: list[Refused] = []

    def refuse(file: Path, told: str) -> None:
        bad.append(Refused(file=file.relative_to(root).as_posix(), reason=told))

    told = {} if descriptions is None else read_descriptions(descriptions, refuse=lambda line: refuse(descriptions, line))
    answers = {ref_id: described_answer(description) for ref_id, description in told.items()}
    instances = read_instances(folder / "instances.json", refuse=lambda _, row: refuse(folder / "instances.json", row))
    yield from bad
    image_folder = images if images is not None else (folder.relative_to(root) / IMAGE_FOLDER).as_posix()
    for row, ref in enumerate(refs):
        file = f"{refs_path.relative_to(root)}#{row}"
        for expression in _expressions(ref, instances, folder=folder, image_folder=image_folder, where=f"reference {row}"):
            if isinstance(expression, str):
                yield Refused(file=file, reason=expression)
            elif expression.split != split:
                continue
            elif not expression.sentence.strip():
                yield Refused(file=file, reason=f"sentence {expression.sent_id}: sent is empty")
            else:
                yield Record(
                    record_id=f"{source}/{expression.ref_id}/{expression.sent_id}",
                    image=expression.image_file,
                    image_name=f"{expression.image_id:012d}",
                    split=split,
                    task="referring",
                    turns=((segment_question(expression.sentence), answers.get(expression.ref_id, SEGMENT_ANSWER)),),
                    expression=expression.sentence,
                    masks=(expression.mask,),
                    source=source,
                )


def read_descriptions(path: Path, *, refuse: Callable[[str], None]) -> dict[int, str]:
    """The description of an object by the number of its reference, of a file with an object {ref_id, description} a line.

    Args:
        path: the file.
        refuse: is told of a line that is anything else or describes a reference again.

    Raises:
        ValueError: the file is absent or not UTF-8.
    """
    found: dict[int, str] = {}
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, row in objects(stream):
                where = f"line {number}"
                if isinstance(row, str):
                    refuse(f"{where}: {row}")
                    continue
                try:
                    ref_id, text = whole_number(row, "ref_id", where), text_of(row, "description", where)
                    if not text.strip(" .\n"):
                        raise ValueError(f"{where}: description must be a text that is not empty, got {text!r:.80}")
                    if len(text) > _LONGEST_DESCRIPTION:
                        raise ValueError(
                            f"{where}: a description of {len(text):,} characters; allowed are {_LONGEST_DESCRIPTION:,}"
                        )
                    if ref_id in found:
                        raise ValueError(f"{where}: ref_id {ref_id} is described twice; the first description stays")
                except ValueError as error:
                    refuse(str(error))
                    continue
                found[ref_id] = text
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return found


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
