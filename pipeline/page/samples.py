"""Samples of what each stage made: pictures, masks, expressions, marks, depth maps, codes, answers, and the quarantine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perceptio_core.data.images import open_image
from perceptio_core.data.loading.dataset import JointDataset, read_index
from perceptio_core.data.manifest.manifest import (
    IMAGES,
    QUARANTINE,
    RECORDS,
    RECORDS_SCHEMA,
    data_root,
    read_image_range,
    read_quarantine,
    record_of,
)
from perceptio_core.data.records import inside
from perceptio_core.data.rle import decode
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.store import DepthStore
from perceptio_core.jsonl import read_jsonl
from perceptio_core.params import VARIED
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import SECTIONS, Values
from perceptio_core.parquet import column, count_rows, read_range
from perceptio_core.report.pictures import data_uri, depth_picture, overlay, shrink
from pipeline.lineage.stage_pictures import pictures_of
from pipeline.page.benchmark_questions import Questions, picture_of
from stages.common import StagePaths

SIDE = 320
_SHOWN = [section for section in SECTIONS if section != "foundations"]  # which are weights


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample.

    Attributes:
        title: what it is.
        pictures: (data URI, caption) pairs.
        said: (name, text) pairs.
    """

    title: str
    pictures: Sequence[tuple[str, str]] = ()
    said: Sequence[tuple[str, str]] = ()

    @property
    def about(self) -> str:
        """The first expression or question that was said, for who does not see the pictures; empty without one."""
        return next((text for name, text in self.said if name in ("expression", "question")), "")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Samples of one kind: their number, and what makes one of them, by its place from 0."""

    count: int
    make: Callable[[int], Sample]


class Samples:
    """The samples of all stages of a checkout's active profile.

    Args:
        values: its parameters.
    """

    def __init__(self, values: Values) -> None:
        self._values, self._paths, self._questions = values, StagePaths(values.profile), Questions(values)
        self._kinds: dict[str, Mapping[str, Kind]] = {}

    def stages(self) -> list[str]:
        """Those that have made something, in the order of the pipeline, as in ``evaluate@full``."""
        names = [
            f"{section}@{variant}" if section in VARIED else section
            for section in _SHOWN
            for variant in (self._values.plain["variants"] if section in VARIED else [""])
        ]
        return [name for name in names if self._out(name).is_dir()]

    def kinds(self, stage: str) -> Mapping[str, Kind]:
        """The kinds of samples that a stage has, what went to quarantine last.

        Raises:
            ValueError: what the stage made cannot be read.
        """
        if stage not in self._kinds:
            out = self._out(stage)
            found: dict[str, Kind] = dict(_OF_STAGE.get(stage.partition("@")[0], Samples._pictures)(self, stage, out))
            if (out / QUARANTINE).is_file():
                refused = list(read_quarantine(out / QUARANTINE))
                found["quarantine"] = Kind(
                    count=len(refused), make=lambda n: Sample(title=refused[n].file, said=[("why", refused[n].reason)])
                )
            self._kinds[stage] = found
        return self._kinds[stage]

    def _out(self, stage: str) -> Path:
        name, _, variant = stage.partition("@")
        return self._paths.out(name, variant or None)

    @cached_property
    def _root(self) -> Path:
        return data_root(self._values.section("sources", SourcesParams), self._paths.made("sources"))

    @cached_property
    def _codebook(self) -> DepthCodebook:
        return DepthCodebook.from_pretrained(self._paths.made("depth_codebook"))

    def _sources(self, _: str, out: Path) -> Mapping[str, Kind]:
        task_R = np.array(list(column(out / RECORDS, RECORDS_SCHEMA, "task")))

        def make(row: int) -> Sample:
            record = record_of(read_range(out / RECORDS, RECORDS_SCHEMA, start=row, stop=row + 1)[0])
            image = open_image(self._root / inside("", record.image, named_in=out / RECORDS))
            masks = [decode(mask) for mask in record.masks or ()]
            caption = f"{len(masks)} masks" if masks else "picture"
            said = [("expression", record.expression)] if record.expression else []
            marks = ", ".join(f"{point.letter} ({point.x}, {point.y})" for point in record.points)
            return Sample(
                title=record.record_id,
                pictures=[(_uri(overlay(image, masks)), caption)],
                said=[
                    *said,
                    *_turns(record.turns),
                    *([("marks", marks)] if marks else []),
                    ("from", f"{record.source}, {record.split}"),
                ],
            )

        return {task: _at(np.flatnonzero(task_R == task), make) for task in sorted(set(task_R.tolist()))}

    def _teacher_depth(self, _: str, out: Path) -> Mapping[str, Kind]:
        store, images = DepthStore(out), self._paths.made("sources")

        def make(number: int) -> Sample:
            (row,) = read_image_range(images, start=number, stop=number + 1)
            if row.image_key not in store:
                return Sample(title=row.image_key, said=[("no map", "the quarantine says why")])
            depth_HW = store[row.image_key]
            image = open_image(self._root / inside("", row.path, named_in=images / IMAGES))
            drawn = depth_picture(depth_HW, size=(depth_HW.shape[1], depth_HW.shape[0]))
            return Sample(
                title=row.image_key,
                pictures=[(_uri(image), "picture"), (_uri(drawn), "the teacher's depth, near is bright")],
                said=[("inverse depth", f"{depth_HW.min():.4g} (far) to {depth_HW.max():.4g} (near)"), ("split", row.split)],
            )

        return {"maps": Kind(count=count_rows(images / IMAGES), make=make)}

    def _joint_shards(self, _: str, out: Path) -> Mapping[str, Kind]:
        found: dict[str, Kind] = {}
        for split in read_index(out)["counts"]:
            dataset = JointDataset(out, split)

            def make(number: int, dataset: JointDataset = dataset) -> Sample:
                sample = dataset[number]
                masks = [decode(mask) for mask in sample.masks]
                pictures = [(_uri(overlay(sample.image, masks)), f"{len(masks)} masks" if masks else "picture")]
                said = [*_turns(sample.turns), ("from", f"{sample.source}, {sample.record_id}, picture {sample.image_key}")]
                if sample.depth_codes is not None:
                    pictures.append((self._decoded(sample.depth_codes, image=sample.image), "what its depth codes stand for"))
                    said.append(("depth codes", " ".join(map(str, sample.depth_codes))))
                return Sample(title=sample.key, pictures=pictures, said=said)

            found |= {f"{split}, {task}": _at(numbers, make) for task, numbers in dataset.tasks.items()}
        return found

    def _evaluate(self, _: str, out: Path) -> Mapping[str, Kind]:
        found: dict[str, Kind] = {}
        entries = self._questions.entries
        files = [file for file in (out / "predictions").glob("*.jsonl") if file.stem in entries]
        for file in sorted(files, key=lambda file: (entries[file.stem].is_control, file.stem)):
            rows = read_jsonl(file, keys=("item_id", "text", "masks", "depth_codes", "correct", "error"))
            for kind, chosen in {"": rows, ", wrong": [row for row in rows if (row["correct"] or 0) < 0.5]}.items():

                def make(number: int, rows: Sequence[Mapping[str, object]] = chosen, label: str = file.stem) -> Sample:
                    return self._answer(label, rows[number])

                found[f"{file.stem}{kind}"] = Kind(count=len(chosen), make=make)
        return found

    def _answer(self, label: str, row: Mapping[str, object]) -> Sample:
        item = self._questions.item(label, str(row["item_id"]))
        said = [("question", item.question), ("right answer", item.expected), ("answer", str(row["text"]) or "(no text)")]
        correct = row["correct"]
        said.append(
            (
                "verdict",
                "not public" if correct is None else f"{correct:.2f} of 1" if item.truth else "right" if correct else "wrong",
            )
        )
        if row["error"] is not None:
            return Sample(title=item.item_id, said=[*said, ("not asked", str(row["error"]))])
        image = picture_of(item)
        masks = [decode(mask) for mask in row["masks"]]  # type: ignore[attr-defined]  # a list, as `to_row` writes it
        drawn = overlay(image, masks, outline_HW=decode(item.truth) if item.truth else None)
        pictures = [(_uri(drawn), "its masks, the right one outlined" if item.truth else "picture")]
        codes = row["depth_codes"]
        if isinstance(codes, list):
            pictures.append((self._decoded(codes, image=image), "what its depth codes stand for"))
        return Sample(title=item.item_id, pictures=pictures, said=said)

    def _pictures(self, stage: str, _: Path) -> Mapping[str, Kind]:
        drawn = pictures_of(stage, profile=self._values.profile)
        made = [Sample(title=stage, pictures=[(one.uri, one.caption)]) for one in drawn]
        return {"pictures": Kind(count=len(made), make=lambda number: made[number])}

    @torch.inference_mode()
    def _decoded(self, codes: Sequence[int], *, image: Image.Image) -> str:
        depth_RR = self._codebook.decode(torch.tensor([list(codes)]))[0, 0].numpy()
        return _uri(depth_picture(depth_RR, size=image.size))


_OF_STAGE: Mapping[str, Callable[[Samples, str, Path], Mapping[str, Kind]]] = {
    "sources": Samples._sources,
    "teacher_depth": Samples._teacher_depth,
    "joint_shards": Samples._joint_shards,
    "evaluate": Samples._evaluate,
}


def _at(places: np.ndarray, make: Callable[[int], Sample]) -> Kind:
    return Kind(count=len(places), make=lambda number: make(int(places[number])))


def _turns(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [pair for question, answer in turns for pair in (("question", question), ("answer", answer))]


def _uri(image: Image.Image) -> str:
    return data_uri(shrink(image, side=SIDE))
