"""Referring expression segmentation on RefCOCO / RefCOCO+ / RefCOCOg: cIoU and gIoU.

Published numbers do not come from one protocol. Here: every sentence of every reference is an expression of its own, the
truth is the union of an annotation's polygons, masks come from generated (not teacher-forced) tokens and are compared at
the original resolution; several [SEG] are merged by union; an answer without [SEG] is an empty mask, and counts.

    cIoU = sum of intersections / sum of unions over expressions, exact integer sums
    gIoU = mean IoU per expression
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from perceptio_core.data.records import spread
from perceptio_core.data.refer import IMAGE_FOLDER, read_refer, segment_question
from perceptio_core.evaluation.benchmark import Answer, Item, Metric, Scores, unique
from perceptio_core.evaluation.bootstrap import Bootstrap
from perceptio_core.evaluation.masks import overlap, union


class ReferringSegmentation:
    """One split of one folder in the REFER layout.

    Args:
        folder: has ``refs(<split_by>).p`` and ``instances.json``.
        split: val, testA, testB (unc) or val, test (umd).
        split_by: unc, umd or google; None where the folder has one file of references.
        images: folder of the COCO train2014 images; None: where REFER keeps them, below `folder`.
        name: first part of the metrics' names, ``<name>_ciou`` and ``<name>_giou``.
        limit: at most this many expressions.

    Raises:
        ValueError: the folder is malformed, or the split is not in it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        split: str,
        split_by: str | None = None,
        images: Path | None = None,
        name: str = "res",
        limit: int | None = None,
    ) -> None:
        images = images or folder / IMAGE_FOLDER
        expressions = read_refer(folder, split_by=split_by, image_folder=images.as_posix())
        chosen = [expression for expression in expressions if expression.split == split]
        if not chosen:
            allowed = sorted({expression.split for expression in expressions})
            raise ValueError(f"{folder}: no expressions in split {split!r}; it has {allowed}")
        self._name, self._label = name, f"{folder.name} {split}"
        self._items = [
            Item(
                item_id=f"{expression.ref_id}/{expression.sent_id}",
                image=Path(expression.image_file),
                question=segment_question(expression.sentence),
                expected=expression.sentence,
                truth=expression.mask,
            )
            for expression in spread(chosen, limit)
        ]
        unique((item.item_id for item in self._items), what="ref_id/sent_id", named_in=folder)

    @property
    def items(self) -> list[Item]:
        """The expressions in the order of the references."""
        return self._items

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """<name>_ciou and <name>_giou, in percent."""
        counts = np.zeros((len(self._items), 2), dtype=np.int64)
        empty = 0
        for row, item in enumerate(self._items):
            assert item.truth is not None
            size = item.truth["size"]
            predicted = union(answers[item.item_id].masks, size=size)
            empty += not answers[item.item_id].masks
            counts[row] = overlap(predicted, union([item.truth], size=size))
        # Nothing to find and nothing claimed is right.
        ious = np.where(counts[:, 1] == 0, 1.0, counts[:, 0] / np.maximum(counts[:, 1], 1))
        intersection, union_ = (int(total) for total in counts.sum(axis=0))
        values_n3 = np.column_stack([counts, ious]).astype(np.float64)
        protocol = (
            f"{self._label}, {len(self._items)} expressions, generated tokens, original resolution, masks merged by union; "
            f"{empty} answers without a mask count as empty masks; per expression"
        )
        ciou = bootstrap.interval([values_n3], lambda means: 100.0 * means[0][:, 0] / np.maximum(means[0][:, 1], 1e-12))
        giou = bootstrap.interval([values_n3], lambda means: 100.0 * means[0][:, 2])
        rows = (
            ("ciou", 100.0 * intersection / max(union_, 1), ciou, "cIoU"),
            ("giou", 100.0 * float(ious.mean()), giou, "gIoU"),
        )
        return Scores(
            headline=[
                Metric(
                    name=f"{self._name}_{suffix}",
                    value=value,
                    low=low,
                    high=high,
                    n=len(self._items),
                    protocol=f"{label}, {protocol}",
                )
                for suffix, value, (low, high), label in rows
            ],
            main=f"{self._name}_ciou",
            correct={item.item_id: float(iou) for item, iou in zip(self._items, ious, strict=True)},
        )
