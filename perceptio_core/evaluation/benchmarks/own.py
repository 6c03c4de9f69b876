"""The user's own validation questions and masks, read as `sources` reads them for training.

Questions: the shares of answers that are right exactly and that contain the right one (`short_answers`), with Wilson's 95 %
interval, since the bootstrap would make 0 to 0 of none right in a dozen. Beside them what is reached without looking: the most
frequent answer of the training rows, and the most frequent of each kind of answer, as though the kind were known. Masks: cIoU
and gIoU as for RefCOCO, one per question.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.readers.coco import coco_records
from perceptio_core.data.readers.own_split import of_split
from perceptio_core.data.readers.questions import question_records
from perceptio_core.data.records import Record, Refused, Split, spread
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, grouped
from perceptio_core.evaluation.benchmarks.masks import union
from perceptio_core.evaluation.benchmarks.res import iou_metrics, ious, pixel_counts
from perceptio_core.evaluation.benchmarks.short_answers import is_contained, is_exact, kind_of, most_common
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric, wilson
from perceptio_core.params.evaluate import BenchmarkParams
from perceptio_core.params.sources import DatasetParams

_MOST_OBJECTS = DatasetParams.model_fields["max_objects"].default
_log = logging.getLogger(__name__)


class OwnQuestions:
    """The rows without a mask of a table of questions.

    Args:
        params: which table, and which share of its pictures; `label` begins the metrics' names.
        root: data root.

    Raises:
        ValueError: the table cannot be read, or has no such row among the validation pictures.
    """

    def __init__(self, params: BenchmarkParams, *, root: Path) -> None:
        asked = [record for record in _records(params, root=root, split="val") if record.masks is None]
        self._name = params.label
        self._asked = spread(asked, params.limit)
        if not self._asked:
            raise ValueError(f"{root / params.path}: no validation question that can be read")
        self._label = _label(params, len(self._asked), len(asked), "questions")
        known = self._asked
        self._known_from = "these questions' own"
        if params.validation_share is not None:
            trained = [record for record in _records(params, root=root, split="train") if record.masks is None]
            if trained:
                known, self._known_from = trained, "the training rows'"
        self._known = [record.turns[0][1] for record in known]

    @property
    def items(self) -> list[Item]:
        """The questions in the order of the table."""
        return [_item(record, expected=record.turns[0][1]) for record in self._asked]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:  # noqa: ARG002 (Wilson's interval)
        """<name>_exact and <name>_contained; baselines <name>_majority and <name>_majority_by_kind; the kinds as parts."""
        name = self._name
        expected = [record.turns[0][1] for record in self._asked]
        said = [answers[record.record_id].text for record in self._asked]
        exact = [is_exact(one, right) for one, right in zip(said, expected, strict=True)]
        contained = [is_contained(one, right) for one, right in zip(said, expected, strict=True)]
        rules = {"exact": "the expected answer, capitals, blanks and punctuation around it aside"}
        rules["contained"] = "the expected answer stands in it as whole words, the same aside"
        always = most_common(self._known)
        by_kind = {kind: most_common(of_kind) for kind, of_kind in grouped(self._known, kind_of).items()}
        majority = [is_exact(always, right) for right in expected]
        kind_majority = [kind_of(right) in by_kind and is_exact(by_kind[kind_of(right)], right) for right in expected]
        told = ", ".join(f"{answer!r}" for answer in by_kind.values())
        parts = [
            _share(
                [hits[place] for place in places],
                name=f"{name}_{measure}/{kind}",
                protocol=f"{self._label}, {rules[measure]}; expected answers of the kind {kind}",
                chance=50.0 if kind == "yes_no" else None,
            )
            for kind, places in grouped(range(len(expected)), lambda place: kind_of(expected[place])).items()
            for measure, hits in (("exact", exact), ("contained", contained))
        ]
        return Scores(
            headline=[
                _share(exact, name=f"{name}_exact", protocol=f"{self._label}, {rules['exact']}"),
                _share(contained, name=f"{name}_contained", protocol=f"{self._label}, {rules['contained']}"),
            ],
            main=f"{name}_exact",
            baselines=[
                _share(
                    majority,
                    name=f"{name}_majority",
                    protocol=f"{self._label}, always {always!r}: {self._known_from} most frequent answer; exact",
                ),
                _share(
                    kind_majority,
                    name=f"{name}_majority_by_kind",
                    protocol=f"{self._label}, as though the kind of the right answer (yes or no, number, other) were known: "
                    f"{self._known_from} most frequent of it ({told}); exact",
                ),
            ],
            breakdown=parts,
            correct={record.record_id: float(hit) for record, hit in zip(self._asked, exact, strict=True)},
        )


class OwnMasks:
    """The rows with a mask of a table of questions, or the categories of each picture of a COCO file.

    Args:
        params: which file, and which share of its pictures; `label` begins the metrics' names.
        root: data root.

    Raises:
        ValueError: the file cannot be read, or has no mask among the validation pictures.
    """

    def __init__(self, params: BenchmarkParams, *, root: Path) -> None:
        asked = [record for record in _records(params, root=root, split="val") if record.masks]
        self._name = params.label
        self._asked = spread(asked, params.limit)
        if not self._asked:
            raise ValueError(f"{root / params.path}: no validation mask that can be read")
        self._label = _label(params, len(self._asked), len(asked), "masks")
        self._targets = [union(record.masks, size=record.masks[0]["size"]) for record in self._asked]

    @property
    def items(self) -> list[Item]:
        """The questions in the order of the file."""
        return [
            _item(record, expected=record.expression or "", truth=target)
            for record, target in zip(self._asked, self._targets, strict=True)
        ]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """<name>_ciou and <name>_giou, in percent."""
        given = [answers[record.record_id].masks for record in self._asked]
        counts_n2 = pixel_counts(given, self._targets)
        with_mask_n = np.array([bool(masks) for masks in given])
        return Scores(
            headline=iou_metrics(counts_n2, with_mask_n, name=self._name, label=self._label, bootstrap=bootstrap),
            main=f"{self._name}_giou",
            correct={record.record_id: float(iou) for record, iou in zip(self._asked, ious(counts_n2), strict=True)},
        )


def _records(params: BenchmarkParams, *, root: Path, split: Split) -> Iterator[Record]:
    """The records of one side; a word in the log about those that cannot be read, which `sources` lists."""
    path = root / params.path
    found: Iterator[Record | Refused]
    if path.suffix == ".json":
        found = coco_records(path, source=params.label, split=split, root=root, images=params.images, max_objects=_MOST_OBJECTS)
    else:
        found = question_records(path, source=params.label, split=split, root=root, images=params.images, masks=params.masks)
    if params.validation_share is not None:
        found = of_split(found, split=split, share=params.validation_share)
    for record in found:
        if isinstance(record, Record):
            yield replace(record, image=(root / record.image).as_posix())
        else:
            _log.warning("%s: %s (left out)", record.file, record.reason)


def _item(record: Record, *, expected: str, truth: Mapping[str, Any] | None = None) -> Item:
    return Item(item_id=record.record_id, image=Path(record.image), question=record.turns[0][0], expected=expected, truth=truth)


def _label(params: BenchmarkParams, asked: int, there: int, what: str) -> str:
    of_all = f" of {there}" if asked < there else ""
    return f"{Path(params.path).name}, {asked}{of_all} {what} about validation pictures"


def _share(hits: Sequence[bool], *, name: str, protocol: str, chance: float | None = None) -> Metric:
    low, high = wilson(sum(hits), len(hits))
    return Metric(
        name=name,
        value=100.0 * sum(hits) / len(hits),
        low=low,
        high=high,
        n=len(hits),
        chance=chance,
        protocol=f"{protocol}; Wilson interval, per question",
    )
