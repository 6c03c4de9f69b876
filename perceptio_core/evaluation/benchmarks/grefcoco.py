"""gRefCOCO, generalised referring segmentation (arXiv 2306.00968): an expression may name several objects, or none.

Official files: ``grefs(unc).json`` (references as in RefCOCO, but `ann_id` is a list, [-1] where nothing is meant) and
``instances.json``; images COCO train2014. The right mask is the union of all annotations that are no crowd.

    cIoU   sum of intersections / sum of unions; nothing meant and nothing claimed adds to neither, a mask where nothing is
           meant adds its pixels to the unions
    gIoU   mean IoU per expression; where nothing is meant, 1 for an empty mask and 0 for any other
    N-acc  of the expressions that mean nothing, the share answered with an empty mask
    T-acc  of those that mean something, the share answered with a mask

by the paper, and for cIoU and gIoU by ``gres_model/evaluation/refer_evaluation.py`` of henghuiding/ReLA (whose own T_acc and
N_acc divide by one sample more, and T_acc by other counts than the paper says). An answer claims nothing if it has no [SEG],
or masks without a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.readers.grefer import NOTHING, REFERENCES
from perceptio_core.data.readers.instances import read_instances, text_of, whole_number
from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.readers.refer import IMAGE_FOLDER, segment_question
from perceptio_core.data.records import inside, spread
from perceptio_core.data.rle import Rle, area, from_segmentation
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, unique
from perceptio_core.evaluation.benchmarks.masks import union
from perceptio_core.evaluation.benchmarks.res import ciou, exact_ratio, ious, pixel_counts
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap, Floats, Statistic
from perceptio_core.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class _Target:
    item: Item
    mask: Rle
    nothing: bool


class GeneralisedReferring:
    """One split of gRefCOCO.

    Args:
        folder: has ``grefs(unc).json`` and ``instances.json``.
        split: val, testA or testB.
        images: folder of the COCO train2014 images; None: where REFER keeps them, below `folder`.
        name: first part of the metrics' names.
        limit: at most this many expressions.

    Raises:
        ValueError: a file is absent or malformed, or the split is not in it.
    """

    def __init__(
        self, folder: Path, *, split: str, images: Path | None = None, name: str = "grefcoco", limit: int | None = None
    ) -> None:
        targets = _read(folder, split=split, images=images or folder / IMAGE_FOLDER)
        self._name = name
        self._targets = spread(targets, limit)
        of_all = f" of {len(targets)}" if limit else ""
        self._label = f"gRefCOCO {split}, {len(self._targets)}{of_all} expressions"

    @property
    def items(self) -> list[Item]:
        """The expressions in the order of the references."""
        return [target.item for target in self._targets]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """<name>_ciou, _giou, _n_acc and _t_acc, in percent."""
        given = [answers[target.item.item_id].masks for target in self._targets]
        counts_n2 = pixel_counts(given, [target.mask for target in self._targets])
        nothing_n = np.array([target.nothing for target in self._targets])
        # Where something is meant, its mask may still be empty (crowds alone): nothing claimed is no hit there.
        ious_n = np.where(nothing_n | (counts_n2[:, 1] > 0), ious(counts_n2), 0.0)
        empty_n = np.array([_is_empty(masks, target.mask) for masks, target in zip(given, self._targets, strict=True)])
        values_n7 = np.column_stack(
            [counts_n2, ious_n, nothing_n, nothing_n & empty_n, ~nothing_n, ~nothing_n & ~empty_n]
        ).astype(np.float64)
        rows: list[tuple[str, str, float, int, Statistic]] = [
            ("ciou", "cIoU", 100.0 * exact_ratio(counts_n2), len(ious_n), _ciou)
        ]
        for name, label, right, of in (("giou", "gIoU", 2, None), ("n_acc", "N-acc", 4, 3), ("t_acc", "T-acc", 6, 5)):
            total = len(ious_n) if of is None else int(values_n7[:, of].sum())
            if total:
                rows.append((name, label, 100.0 * float(values_n7[:, right].sum()) / total, total, _share(right, of)))
        protocol = (
            f"{self._label}, {int(nothing_n.sum())} of them mean nothing; generated tokens, original resolution, masks and "
            f"polygons merged by union; per expression"
        )
        bounds = bootstrap.intervals([values_n7], [statistic for *_, statistic in rows], units=[n for *_, n, _ in rows])
        return Scores(
            headline=[
                Metric(name=f"{self._name}_{name}", value=value, low=low, high=high, n=n, protocol=f"{label}, {protocol}")
                for (name, label, value, n, _), (low, high) in zip(rows, bounds, strict=True)
            ],
            main=f"{self._name}_ciou",
            correct={target.item.item_id: float(iou) for target, iou in zip(self._targets, ious_n, strict=True)},
        )


def _ciou(means: list[Floats]) -> Floats:
    return ciou(means[0])


def _share(right: int, of: int | None) -> Statistic:
    """Resampled share of column `right` in column `of` (None: in all); a resample without any of `of` counts as 0."""

    def share(means: list[Floats]) -> Floats:
        whole = 1.0 if of is None else np.maximum(means[0][:, of], 1e-12)
        ratio: Floats = 100.0 * means[0][:, right] / whole
        return ratio

    return share


def _is_empty(masks: tuple[Mapping[str, Any], ...], target: Rle) -> bool:
    return area(union(masks, size=target["size"])) == 0


def _read(folder: Path, *, split: str, images: Path) -> list[_Target]:
    refs_path, instances_path = folder / REFERENCES, folder / "instances.json"
    refs = list(enumerate(list_rows(refs_path, of="references")))
    splits = [text_of(ref, "split", f"{refs_path}: reference {row}") for row, ref in refs]
    chosen = [ref for (_, ref), one in zip(refs, splits, strict=True) if one == split]
    if not chosen:
        raise ValueError(f"{refs_path}: no expressions in split {split!r}; it has {sorted(set(splits))}")
    image_rows, annotations, _ = read_instances(instances_path)
    targets = []
    for ref in chosen:
        ref_id = whole_number(ref, "ref_id", f"{refs_path}: a reference")
        where = f"{refs_path}: reference {ref_id}"
        image, sentences = image_rows.get(whole_number(ref, "image_id", where)), ref.get("sentences")
        if image is None or "ann_id" not in ref or not isinstance(sentences, list):
            raise ValueError(f"{where}: lacks ann_id, a list of sentences or an image_id that is in {instances_path}")
        ann_ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        mask = _mask(ann_ids, annotations, image, where)
        file = inside(images.as_posix(), image["file_name"], named_in=instances_path)
        for sentence in sentences:
            sent_id = whole_number(sentence, "sent_id", where)
            if not isinstance(sentence.get("sent"), str):
                raise ValueError(f"{where}: sentence {sent_id}: sent must be a text, got {sentence.get('sent')!r:.80}")
            item = Item(
                item_id=f"{ref_id}/{sent_id}",
                image=Path(file),
                question=segment_question(sentence["sent"]),
                expected=sentence["sent"],
                truth=mask,
            )
            targets.append(_Target(item=item, mask=mask, nothing=ann_ids == NOTHING))
    unique((target.item.item_id for target in targets), what="ref_id/sent_id", named_in=refs_path)
    return targets


def _mask(ann_ids: list[Any], annotations: Mapping[int, Any], image: Mapping[str, Any], where: str) -> Rle:
    """The union of the annotations; empty for [-1]."""
    height, width = image["height"], image["width"]
    parts = []
    for ann_id in ann_ids:
        if ann_ids == NOTHING:
            break
        if not isinstance(ann_id, int) or ann_id not in annotations:
            raise ValueError(f"{where}: ann_id {ann_id!r:.80} is not in instances.json; [-1] stands for nothing")
        if not annotations[ann_id].get("iscrowd"):
            try:
                parts.append(from_segmentation(annotations[ann_id].get("segmentation"), height=height, width=width))
            except ValueError as error:
                raise ValueError(f"{where}: annotation {ann_id}: {error}") from error
    return union(parts, size=(height, width))
