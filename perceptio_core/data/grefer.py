"""gRefCOCO (arXiv 2306.00968) for training: expressions for several objects or for none, ``grefs(unc).json``.

One [SEG] per object, in the order of the annotations' numbers. An expression that means nothing has no mask and an answer of
its own (ours).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perceptio_core.data.instances import read_instances
from perceptio_core.data.json_rows import list_rows
from perceptio_core.data.records import SEGMENT_ANSWER, Record, Refused, Split, inside, segment_question
from perceptio_core.data.refer import IMAGE_FOLDER
from perceptio_core.data.rle import from_segmentation

REFERENCES = "grefs(unc).json"
NOTHING = [-1]
"""`ann_id` of an expression that means nothing in the image."""
NOTHING_ANSWER = "There is nothing like that in this image."


def read_grefs(path: Path) -> Iterator[dict[str, Any]]:
    """The references, as they are.

    Raises:
        ValueError: absent, not JSON, or no list of objects; names the file.
    """
    for ref in list_rows(path, of="references"):
        if not isinstance(ref, dict):
            raise ValueError(f"{path}: expected a list of references, got {ref!r} in it"[:300])
        yield ref


def grefer_records(folder: Path, *, source: str, split: Split, root: Path, images: str | None) -> Iterator[Record | Refused]:
    """One referring record per expression of one split; `folder` and `images` lie below `root`.

    References to an image or annotation that is not there, or to a crowd region, are refused.

    Raises:
        ValueError: a file is absent or malformed.
    """
    path, instances = folder / REFERENCES, folder / "instances.json"
    image_rows, annotations, _ = read_instances(instances)
    image_folder = images if images is not None else (folder.relative_to(root) / IMAGE_FOLDER).as_posix()
    for number, ref in enumerate(read_grefs(path)):
        if ref.get("split") != split:
            continue
        try:
            image = image_rows.get(ref.get("image_id", -1))
            if image is None:
                raise ValueError(f"image_id {ref.get('image_id')!r} is not in {instances.name}")
            masks = _masks(ref.get("ann_id"), annotations, height=image["height"], width=image["width"])
            file = inside(image_folder, image["file_name"], named_in=instances)
            said = [(sentence["sent_id"], sentence["sent"]) for sentence in ref["sentences"]]
            ref_id = ref["ref_id"]
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"ref_id, sentences, sent_id or sent is absent ({error})"
            yield Refused(file=f"{path.relative_to(root)}#{number}", reason=reason)
            continue
        for sent_id, sentence in said:
            yield Record(
                record_id=f"{source}/{ref_id}/{sent_id}",
                image=file,
                image_name=f"{ref['image_id']:012d}",
                split=split,
                task="referring",
                turns=((segment_question(sentence), SEGMENT_ANSWER if masks else NOTHING_ANSWER),),
                expression=sentence,
                masks=masks,
                source=source,
            )


def _masks(ann_ids: Any, annotations: Mapping[int, dict[str, Any]], *, height: int, width: int) -> tuple[dict[str, Any], ...]:
    """One mask per annotation; none for [-1]."""
    listed = ann_ids if isinstance(ann_ids, list) else [ann_ids]
    if listed == NOTHING:
        return ()
    if not listed:
        raise ValueError("ann_id is empty; [-1] stands for nothing")
    masks = []
    for ann_id in sorted(listed):
        if ann_id not in annotations:
            raise ValueError(f"ann_id {ann_id!r} is not in instances.json; [-1] stands for nothing")
        if annotations[ann_id].get("iscrowd"):
            raise ValueError(f"annotation {ann_id} is a crowd region")
        masks.append(from_segmentation(annotations[ann_id].get("segmentation"), height=height, width=width))
    return tuple(masks)
