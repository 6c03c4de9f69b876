"""gRefCOCO (arXiv 2306.00968) for training: expressions for several objects or for none, ``grefs(unc).json``.

One [SEG] per object, in the order of the annotations' numbers. An expression that means nothing has no mask and an answer of
its own (ours).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perceptio_core.data.readers.instances import read_instances, text_of, whole_number
from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.readers.refer import IMAGE_FOLDER
from perceptio_core.data.records import SEGMENT_ANSWER, Record, Refused, Split, inside, segment_question
from perceptio_core.data.rle import from_segmentation

REFERENCES = "grefs(unc).json"
NOTHING = [-1]
"""`ann_id` of an expression that means nothing in the image."""
NOTHING_ANSWER = "There is nothing like that in this image."


def grefer_records(folder: Path, *, source: str, split: Split, root: Path, images: str | None) -> Iterator[Record | Refused]:
    """One referring record per expression of one split; `folder` and `images` lie below `root`.

    References to an image or annotation that is not there, or to a crowd region, and expressions that are no texts are refused.

    Raises:
        ValueError: a file is absent or malformed.
    """
    path, instances = folder / REFERENCES, folder / "instances.json"
    bad: list[str] = []
    image_rows, annotations, _ = read_instances(instances, refuse=lambda _, told: bad.append(told))
    yield from (Refused(file=instances.relative_to(root).as_posix(), reason=told) for told in bad)
    image_folder = images if images is not None else (folder.relative_to(root) / IMAGE_FOLDER).as_posix()
    for number, ref in enumerate(list_rows(path, of="references")):
        where = f"{path.relative_to(root)}#{number}"
        try:
            if text_of(ref, "split", "the reference") != split:
                continue
            image_id, ref_id = (whole_number(ref, key, "the reference") for key in ("image_id", "ref_id"))
            image = image_rows.get(image_id)
            if image is None:
                raise ValueError(f"image_id {image_id} is not in {instances.name}")
            masks = _masks(ref.get("ann_id"), annotations, height=image["height"], width=image["width"])
            file = inside(image_folder, image["file_name"], named_in=instances)
            if not isinstance(ref.get("sentences"), list):
                raise ValueError("sentences must be a list")
        except ValueError as error:
            yield Refused(file=where, reason=str(error))
            continue
        for sentence in ref["sentences"]:
            try:
                sent_id, said = whole_number(sentence, "sent_id", "a sentence"), text_of(sentence, "sent", "a sentence")
            except ValueError as error:
                yield Refused(file=where, reason=str(error))
                continue
            yield Record(
                record_id=f"{source}/{ref_id}/{sent_id}",
                image=file,
                image_name=f"{image_id:012d}",
                split=split,
                task="referring",
                turns=((segment_question(said), SEGMENT_ANSWER if masks else NOTHING_ANSWER),),
                expression=said,
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
    for ann_id in sorted(listed, key=lambda one: one if isinstance(one, int) else 0):
        if ann_id not in annotations:
            raise ValueError(f"ann_id {ann_id!r:.80} is not in instances.json; [-1] stands for nothing")
        if annotations[ann_id].get("iscrowd"):
            raise ValueError(f"annotation {ann_id} is a crowd region")
        masks.append(from_segmentation(annotations[ann_id].get("segmentation"), height=height, width=width))
    return tuple(masks)
