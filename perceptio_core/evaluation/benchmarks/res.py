"""Referring expression segmentation on RefCOCO / RefCOCO+ / RefCOCOg: cIoU and gIoU.

    cIoU = sum of intersections / sum of unions over expressions, exact integer sums
    gIoU = mean IoU per expression

at the original resolution; several [SEG] are merged by union; an answer without [SEG] is an empty mask, and counts.
Published numbers do not come from one protocol: `perceptio_core.evaluation.benchmarks.res_protocols` has the canonical one
and those of three other projects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perceptio_core.data.readers.instances import read_instances
from perceptio_core.data.readers.refer import IMAGE_FOLDER, Expression, read_refer, segment_question
from perceptio_core.data.records import spread
from perceptio_core.data.rle import Rle
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, unique
from perceptio_core.evaluation.benchmarks.masks import overlap, union
from perceptio_core.evaluation.benchmarks.res_protocols import PROTOCOLS
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap, Floats
from perceptio_core.metrics import Metric

EXPRESSIONS = {("refcoco", "val"): 10834, ("refcoco", "testA"): 5657, ("refcoco", "testB"): 5095}
"""How many the official splits hold (unc), by the folder's name."""


class ReferringSegmentation:
    """One split of one folder in the REFER layout.

    Args:
        folder: has ``refs(<split_by>).p`` and ``instances.json``.
        split: val, testA, testB (unc) or val, test (umd).
        split_by: unc, umd or google; None where the folder has one file of references.
        images: folder of the COCO train2014 images; None: where REFER keeps them, below `folder`.
        name: first part of the metrics' names, ``<name>_ciou`` and ``<name>_giou``.
        protocol: a key of `PROTOCOLS`.
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
        protocol: str = "canonical",
        limit: int | None = None,
    ) -> None:
        images = images or folder / IMAGE_FOLDER
        expressions = list(read_refer(folder, split_by=split_by, image_folder=images.as_posix()))
        of_split = [expression for expression in expressions if expression.split == split]
        if not of_split:
            allowed = sorted({expression.split for expression in expressions})
            raise ValueError(f"{folder}: no expressions in split {split!r}; it has {allowed}")
        self._name, self._protocol = name, PROTOCOLS[protocol]
        chosen = spread(self._protocol.choose(of_split), limit)
        whole = EXPRESSIONS.get((folder.name, split), len(of_split))
        of_whole = f"{len(chosen)}" + (f" of the split's {whole}" if len(of_split) != whole or limit else "")
        self._label = f"{folder.name} {split}, {of_whole} expressions, {self._protocol.says}"
        self._items = [
            Item(
                item_id=f"{expression.ref_id}/{expression.sent_id}",
                image=Path(expression.image_file),
                question=segment_question(expression.sentence),
                expected=expression.sentence,
                truth=expression.mask,
            )
            for expression in chosen
        ]
        unique((item.item_id for item in self._items), what="ref_id/sent_id", named_in=folder)
        self._targets = self._read_targets(folder, chosen)

    def _read_targets(self, folder: Path, expressions: Sequence[Expression]) -> list[Rle]:
        """What each answer is compared with."""
        target = self._protocol.target
        if target is None:
            return [expression.mask for expression in expressions]
        _, annotations, _ = read_instances(folder / "instances.json")
        made: dict[int, Rle] = {}
        for expression in expressions:
            if expression.ann_id not in made:
                height, width = expression.mask["size"]
                made[expression.ann_id] = target(annotations[expression.ann_id]["segmentation"], height, width)
        return [made[expression.ann_id] for expression in expressions]

    @property
    def items(self) -> list[Item]:
        """The expressions in the order of the references."""
        return self._items

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """<name>_ciou and <name>_giou, in percent; for ``sa2va`` <name>_ciou/absent_skipped as a part."""
        given = [answers[item.item_id].masks for item in self._items]
        counts_n2 = pixel_counts(given, self._targets)
        with_mask_n = np.array([bool(masks) for masks in given])
        breakdown = []
        if self._protocol.absent_skipped and with_mask_n.any():
            answered = counts_n2[with_mask_n]
            low, high = bootstrap.interval([answered.astype(np.float64)], lambda means: ciou(means[0]))
            breakdown.append(
                Metric(
                    name=f"{self._name}_ciou/absent_skipped",
                    value=100.0 * exact_ratio(answered),
                    low=low,
                    high=high,
                    n=len(answered),
                    protocol=f"cIoU, {self._label}, by the earlier code: answers without a mask are left out; per expression",
                )
            )
        return Scores(
            headline=iou_metrics(counts_n2, with_mask_n, name=self._name, label=self._label, bootstrap=bootstrap),
            main=f"{self._name}_ciou",
            breakdown=breakdown,
            correct={item.item_id: float(iou) for item, iou in zip(self._items, ious(counts_n2), strict=True)},
        )


def iou_metrics(
    counts_n2: NDArray[np.int64], with_mask_n: NDArray[np.bool_], *, name: str, label: str, bootstrap: Bootstrap
) -> list[Metric]:
    """<name>_ciou and <name>_giou, in percent.

    Args:
        counts_n2: pixels in the intersection and in the union of each expression's answer and target (`pixel_counts`).
        with_mask_n: whether the answer has a mask at all.
        name: first part of the metrics' names.
        label: what was asked, as the protocol states it.
        bootstrap: how intervals are computed.
    """
    ious_n = ious(counts_n2)
    values_n3 = np.column_stack([counts_n2, ious_n]).astype(np.float64)
    protocol = (
        f"{label}, original resolution, predicted masks merged by union; "
        f"{np.count_nonzero(~with_mask_n)} answers without a mask count as empty masks; per expression"
    )
    bounds = bootstrap.intervals([values_n3], [lambda means: ciou(means[0]), lambda means: 100.0 * means[0][:, 2]])
    rows = (
        ("ciou", 100.0 * exact_ratio(counts_n2), bounds[0], "cIoU"),
        ("giou", 100.0 * float(ious_n.mean()), bounds[1], "gIoU"),
    )
    return [
        Metric(name=f"{name}_{suffix}", value=value, low=low, high=high, n=len(counts_n2), protocol=f"{measure}, {protocol}")
        for suffix, value, (low, high), measure in rows
    ]


def pixel_counts(given: Sequence[Sequence[Rle]], targets: Sequence[Rle]) -> NDArray[np.int64]:
    """(n, 2): pixels in the intersection and in the union of each answer's masks, merged, and its target.

    Raises:
        ValueError: a mask has another size than its target.
    """
    counts_n2 = np.zeros((len(targets), 2), dtype=np.int64)
    for row, (masks, target) in enumerate(zip(given, targets, strict=True)):
        counts_n2[row] = overlap(union(masks, size=target["size"]), target)
    return counts_n2


def ious(counts_n2: NDArray[np.int64]) -> Floats:
    """(n,) IoU; nothing to find and nothing claimed is right."""
    return np.where(counts_n2[:, 1] == 0, 1.0, counts_n2[:, 0] / np.maximum(counts_n2[:, 1], 1))


def exact_ratio(counts_n2: NDArray[np.int64]) -> float:
    """Sum of intersections over sum of unions, summed as integers."""
    intersection, union_ = (int(total) for total in counts_n2.sum(axis=0))
    return intersection / max(union_, 1)


def ciou(means_Sk: Floats) -> Floats:
    """(S,) cIoU in percent from resampled means of intersections (column 0) and unions (column 1)."""
    ratio: Floats = 100.0 * means_Sk[:, 0] / np.maximum(means_Sk[:, 1], 1e-12)
    return ratio
