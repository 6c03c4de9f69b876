"""Which expressions of a RefCOCO split count, and what is their right mask: the canonical protocol and three of others.

    canonical  every sentence of every reference; an annotation's polygons merged by union
    lisa       every sentence; polygons *summed*, and pixels in more than one of them belong to no class
    sa2va      every sentence; polygons summed, and the sums sent through the run-length coder, which knows change only
    xsam       of every annotation its last reference, and of that the distinct sentences in lower case; polygons by union

``lisa`` follows ``ValDataset`` in ``utils/dataset.py``, ``validate`` in ``train_ds.py`` and ``intersectionAndUnionGPU`` in
``utils/utils.py`` of dvlab-research/LISA: the target counts where it is exactly 1, so that of two overlapping polygons the
overlap is background there, and a prediction that fills it is charged for it. The answers are teacher-forced there, hence
always have a mask; here they are scored as they are given.

``sa2va`` follows ``projects/sa2va/evaluation/dataset/RES.py`` and ``refcoco_eval.py`` of bytedance/Sa2VA: the summed target
is encoded as run lengths, column by column, before it is compared. That coder starts a new run at every *change* of value:
an overlap (2) between ones becomes background, as in ``lisa``; between zeros it stays; between a one and a zero it inverts
all that follows, up to the next such place. An answer without [SEG] is a zero mask; the project's earlier code left it out
of the sums of cIoU (``projects/llava_sam2/evaluation/dataset/RES.py``), which the scorer states beside it.

``xsam`` follows ``xsam/dataset/refseg_dataset.py`` and ``evaluation/evaluators/refseg_evaluator.py`` of wanghao9610/X-SAM.
Its random choice, where an image has more expressions than the model takes at once, is not reproduced.

None of the small numbers (1e-5, 1e-10) that the first two add to their denominators is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from perceptio_core.data.readers.refer import Expression
from perceptio_core.data.rle import Rle, encode, from_segmentation


@dataclass(frozen=True, kw_only=True)
class ResProtocol:
    """One way to score a split.

    Attributes:
        says: what the printed protocol says of it.
        choose: the expressions that count, of all of the split.
        target: the right mask, from an annotation's `segmentation`, the image's height and its width; None: the union.
        absent_skipped: whether cIoU is stated a second time without the answers that have no mask.
    """

    says: str
    choose: Callable[[Sequence[Expression]], list[Expression]]
    target: Callable[[Any, int, int], Rle] | None = None
    absent_skipped: bool = False


def single_polygon_pixels(segmentation: Any, height: int, width: int) -> Rle:
    """The pixels that lie in exactly one of an annotation's polygons."""
    return encode(_polygon_sum(segmentation, height, width) == 1)


def sum_through_run_lengths(segmentation: Any, height: int, width: int) -> Rle:
    """The summed polygons as the run-length coder makes a mask of them."""
    rle = coco.encode(np.asfortranarray(_polygon_sum(segmentation, height, width)))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _polygon_sum(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """(height, width): in how many of the polygons a pixel lies."""
    union = from_segmentation(segmentation, height=height, width=width)  # refuses what is malformed
    if not isinstance(segmentation, list) or not segmentation:
        return np.asarray(coco.decode(union), dtype=np.uint8)
    masks_HWP = coco.decode(coco.frPyObjects(segmentation, height, width))
    return np.asarray(masks_HWP.sum(axis=2), dtype=np.uint8)


def _every_sentence(expressions: Sequence[Expression]) -> list[Expression]:
    return list(expressions)


def _distinct_sentences(expressions: Sequence[Expression]) -> list[Expression]:
    last_reference = {expression.ann_id: expression.ref_id for expression in expressions}
    chosen: dict[tuple[int, str], Expression] = {}
    for expression in expressions:
        if last_reference[expression.ann_id] == expression.ref_id:
            sentence = expression.sentence.lower()
            chosen.setdefault((expression.ann_id, sentence), replace(expression, sentence=sentence))
    return list(chosen.values())


PROTOCOLS = {
    "canonical": ResProtocol(says="every sentence, generated tokens, polygons by union", choose=_every_sentence),
    "lisa": ResProtocol(
        says="LISA's: every sentence, polygons summed and their overlaps dropped (teacher-forced there, as given here)",
        choose=_every_sentence,
        target=single_polygon_pixels,
    ),
    "sa2va": ResProtocol(
        says="Sa2VA's: every sentence, generated tokens, polygons summed and run-length coded",
        choose=_every_sentence,
        target=sum_through_run_lengths,
        absent_skipped=True,
    ),
    "xsam": ResProtocol(
        says="X-SAM's: distinct lower-cased sentences per annotation, generated tokens, polygons by union",
        choose=_distinct_sentences,
    ),
}
