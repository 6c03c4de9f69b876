"""ReasonSeg, reasoning segmentation (arXiv 2308.00692): gIoU and cIoU; regions marked "ignore" do not count.

Official files: one folder per split with pairs ``<name>.jpg`` and ``<name>.json`` {"text": [instructions], "is_sentence",
"shapes": [{"label": "target" or "ignore", "points"}]}. As in ``utils/data_processing.py`` and ``utils/dataset.py`` of
dvlab-research/LISA: shapes are painted from the largest to the smallest, a later one over an earlier one, outline included;
shapes labelled "flag" are left out; the first instruction is asked; a pixel of an "ignore" region leaves both prediction and
right mask. An answer without [SEG] is an empty mask (there the answers are teacher-forced).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perceptio_core.data.images import upright_size
from perceptio_core.data.records import segment_question, spread
from perceptio_core.data.rle import Rle, encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores
from perceptio_core.evaluation.benchmarks.masks import intersection, union
from perceptio_core.evaluation.benchmarks.res import ciou, exact_ratio, ious, pixel_counts
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric

_IGNORED = 255
_FARTHEST = 100_000  # of a point, in pixels: painting takes time by the length of an outline, also outside of the picture


@dataclass(frozen=True, kw_only=True)
class _Target:
    item: Item
    mask: Rle
    counted: Rle
    """The pixels outside of ignored regions."""
    is_sentence: bool


class ReasonSeg:
    """One split.

    Args:
        folder: of the split, ``.../val`` or ``.../test``.
        name: first part of the metrics' names.
        limit: at most this many images.

    Raises:
        ValueError: no pairs in it, or a malformed one.
    """

    def __init__(self, folder: Path, *, name: str = "reasonseg", limit: int | None = None) -> None:
        files = sorted(folder.glob("*.json"))
        if not files:
            raise ValueError(f"{folder}: no <name>.json in it")
        self._name = name
        self._targets = [_read(file) for file in spread(files, limit)]
        of_all = f" of {len(files)}" if limit else ""
        self._label = f"ReasonSeg {folder.name}, {len(self._targets)}{of_all} images"

    @property
    def items(self) -> list[Item]:
        """The images in the order of their names."""
        return [target.item for target in self._targets]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """<name>_giou and <name>_ciou in percent; the same of short phrases and of sentences as parts."""
        given = [answers[target.item.item_id].masks for target in self._targets]
        counted = [
            (intersection(union(masks, size=target.mask["size"]), target.counted),)
            for masks, target in zip(given, self._targets, strict=True)
        ]
        counts_n2 = pixel_counts(counted, [target.mask for target in self._targets])
        ious_n = ious(counts_n2)
        values_n3 = np.column_stack([counts_n2, ious_n]).astype(np.float64)
        absent = sum(not masks for masks in given)
        protocol = (
            f"generated tokens, original resolution, ignored regions left out; {absent} answers without a mask count as "
            "empty masks; per image"
        )
        sentence_n = np.array([target.is_sentence for target in self._targets])

        def metrics(chosen_n: NDArray[np.bool_], suffix: str, label: str) -> list[Metric]:
            values, counts = values_n3[chosen_n], counts_n2[chosen_n]
            bounds = bootstrap.intervals([values], [lambda means: 100.0 * means[0][:, 2], lambda means: ciou(means[0])])
            rows = (("giou", "gIoU", 100.0 * float(values[:, 2].mean())), ("ciou", "cIoU", 100.0 * exact_ratio(counts)))
            return [
                Metric(
                    name=f"{self._name}_{name}{suffix}",
                    value=value,
                    low=low,
                    high=high,
                    n=len(values),
                    protocol=f"{measure}, {self._label}{label}, {protocol}",
                )
                for (name, measure, value), (low, high) in zip(rows, bounds, strict=True)
            ]

        parts = ((~sentence_n, "/short", ", short phrases"), (sentence_n, "/long", ", sentences"))
        return Scores(
            headline=metrics(np.ones(len(ious_n), dtype=bool), "", ""),
            main=f"{self._name}_giou",
            breakdown=[metric for chosen, suffix, label in parts if chosen.any() for metric in metrics(chosen, suffix, label)],
            correct={target.item.item_id: float(iou) for target, iou in zip(self._targets, ious_n, strict=True)},
        )


def painted(shapes: list[Any], *, height: int, width: int) -> NDArray[np.uint8]:
    """(height, width): 1 where the target is, 255 in ignored regions, 0 elsewhere.

    Raises:
        ValueError: a shape has no label or no list of points.
    """
    polygons: list[tuple[int, NDArray[np.int32]]] = []
    for shape in shapes:
        label, listed = (shape.get("label"), shape.get("points")) if isinstance(shape, dict) else (None, None)
        points = np.asarray(listed, dtype=np.float64) if isinstance(listed, list) else np.zeros(0)
        if not isinstance(label, str) or points.ndim != 2 or points.shape[1] != 2 or not (abs(points) < _FARTHEST).all():
            raise ValueError(f"a shape has a label and a list of x, y points, none farther out than {_FARTHEST}")
        if label.lower() != "flag":
            polygons.append((_IGNORED if "ignore" in label.lower() else 1, points.astype(np.int32)))
    areas = [int(_paint(np.zeros((height, width), np.uint8), points, 1).sum()) for _, points in polygons]
    mask = np.zeros((height, width), dtype=np.uint8)
    for row in np.argsort(areas)[::-1]:  # the order of equal areas is that of the official script
        _paint(mask, polygons[row][1], polygons[row][0])
    return mask


def _paint(mask: NDArray[np.uint8], points: NDArray[np.int32], value: int) -> NDArray[np.uint8]:
    cv2.polylines(mask, [points], True, value, 1)
    cv2.fillPoly(mask, [points], value)
    return mask


def _read(file: Path) -> _Target:
    content = file.read_bytes()
    try:
        try:
            annotation = json.loads(content.decode("utf-8-sig"))
        except UnicodeDecodeError:
            annotation = json.loads(content.decode("cp1252"))  # as the official script does
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(annotation, dict) or not {"text", "is_sentence", "shapes"} <= annotation.keys():
        raise ValueError(f"{file}: expected an object with text, is_sentence and shapes")
    text = annotation["text"]
    if not isinstance(text, list) or not text or not isinstance(text[0], str):
        raise ValueError(f"{file}: text must be a list of instructions")
    image = file.with_suffix(".jpg")
    width, height = upright_size(image)  # that of the masks
    try:
        mask = painted(annotation["shapes"], height=height, width=width)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    instruction = text[0].strip()
    is_sentence = annotation["is_sentence"]
    if not isinstance(is_sentence, bool):
        raise ValueError(f"{file}: is_sentence must be true or false, got {is_sentence!r:.80}")
    target = encode(mask == 1)
    item = Item(
        item_id=file.stem,
        image=image,
        question=f"{instruction} Please output segmentation mask." if is_sentence else segment_question(instruction),
        expected=instruction,
        truth=target,
    )
    return _Target(item=item, mask=target, counted=encode(mask != _IGNORED), is_sentence=is_sentence)
