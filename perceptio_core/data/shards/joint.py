"""Joins image, masks, texts and depth codes by image key into the entries of shards.

What is said of an image: its conversations; its referring records, several to a conversation; depth-order questions about
points that are circled when the sample is read, whose answers are read off the teacher's depth map, each followed by
comparisons of two of its points; and its depth codes as a task of their own. The codes are those of the image without drawn
circles. Where a data set brings images with circles on them, the codes are of what they show, and no questions are made.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data import rle
from perceptio_core.data.images import open_with_format
from perceptio_core.data.manifest.descriptions import described_turns
from perceptio_core.data.manifest.manifest import ImageRow
from perceptio_core.data.records import DEPTH_MAP_QUESTION, Point, Record, Refused
from perceptio_core.data.shards.entry import Annotation, Entry
from perceptio_core.data.shards.markers import QUESTION, Marker, answer, comparisons, sample_questions
from perceptio_core.data.shards.plan import ShardJob
from perceptio_core.data.shards.tars import ShardPart, write_shard
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.store import DepthMaps
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.seeds import stream

TEACHER = "teacher_depth"
"""The `source` of samples whose answer comes from the teacher's depth map."""

_ENCODE_BATCH = 64
_COUNT_TRIES = 2  # draws of the number of points, where a picture admits no balanced set of the first
_BIGGEST_MAP = 1024  # longer sides of a depth map are thinned out to this for the choice of points


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """One image with all that is known of it.

    `depth` (H, W) is the teacher's inverse depth, thinned out where it is large; `normalised` (1, R, R) is it for the codebook.
    """

    row: ImageRow
    records: tuple[Record, ...]
    image: Image.Image
    encoded: bytes
    extension: Literal["jpg", "png"]
    depth: NDArray[np.float32]
    normalised: torch.Tensor


class ShardMaker:
    """Makes shards, one after the other.

    Args:
        root: data root of the image paths.
        depth: output of the stage `teacher_depth`.
        codebook: output of the stage `depth_codebook`.
        params: the `joint_shards` section.
        reasons: why the teacher has no depth map of an image, by path or image key.
    """

    def __init__(
        self, *, root: Path, depth: Path, codebook: Path, params: JointShardsParams, reasons: Mapping[str, str]
    ) -> None:
        self._root, self._params, self._reasons = root, params, reasons
        self._maps = DepthMaps(depth)
        self._codebook = DepthCodebook.from_pretrained(codebook).eval()

    def make(self, job: ShardJob, *, folder: Path) -> ShardPart:
        """Write one shard into `folder`."""
        refused: list[Refused] = []
        loaded = list(self._load(job, refused))
        planned: Counter[tuple[str, str]] = Counter(
            (record.task, record.source) for _, records in job.images for record in records
        )
        used: Counter[tuple[str, str]] = Counter((record.task, record.source) for one in loaded for record in one.records)
        records = {(*what, "records"): number for what, number in used.items()}
        records |= {(*what, "quarantined"): number for what, number in (planned - used).items()}
        entries = [
            Entry(
                image=one.encoded,
                extension=one.extension,
                image_key=one.row.image_key,
                width=one.row.width,
                height=one.row.height,
                depth_codes=codes_N,
                annotations=annotations,
            )
            for one, codes_N in zip(loaded, self._encode(loaded), strict=True)
            if (annotations := list(self._annotations(one)))
        ]
        return write_shard(folder, name=job.name, split=job.split, entries=entries, quarantine=refused, records=records)

    def _load(self, job: ShardJob, refused: list[Refused]) -> Iterator[_Loaded]:
        """The images that can be used; of the others every record is refused with the reason."""
        for (row, records), place in zip(job.images, job.maps, strict=True):
            try:
                yield self._load_one(row, records, place)
            except ValueError as error:
                refused.append(Refused(file=row.path, reason=str(error)))
                refused += [Refused(file=f"{row.path}#{r.record_id}", reason=str(error)) for r in records]

    def _load_one(self, row: ImageRow, records: tuple[Record, ...], place: tuple[Any, ...]) -> _Loaded:
        if place[2] == 0:
            known = self._reasons.get(row.path) or self._reasons.get(row.image_key)
            raise ValueError(f"no depth map: {known}" if known else "the teacher has no depth map of it")
        try:
            encoded = (self._root / row.path).read_bytes()
        except OSError as error:
            raise ValueError(str(error.strerror)) from error
        opened = open_with_format(encoded, max_pixels=row.width * row.height, name="the image")
        if opened.image.size != (row.width, row.height):
            raise ValueError(f"the image is {opened.image.size} now, not {(row.width, row.height)} as in the manifest")
        extension: Literal["jpg", "png"] = "jpg" if opened.extension == "jpg" else "png"
        if opened.extension is None:
            encoded = _png(opened.image)
        depth_HW = self._maps.read(place, image_key=row.image_key)
        normalised_1RR = self._codebook.normalise(depth_HW)
        step = max(1, -(-max(depth_HW.shape) // _BIGGEST_MAP))
        return _Loaded(
            row=row,
            records=records,
            image=opened.image,
            encoded=encoded,
            extension=extension,
            depth=depth_HW[::step, ::step].copy(),
            normalised=normalised_1RR,
        )

    @torch.inference_mode()
    def _encode(self, loaded: Sequence[_Loaded]) -> list[list[int]]:
        codes: list[list[int]] = []
        for start in range(0, len(loaded), _ENCODE_BATCH):
            batch_B1RR = torch.stack([one.normalised for one in loaded[start : start + _ENCODE_BATCH]])
            codes += self._codebook.encode(batch_B1RR).tolist()
        return codes

    def _annotations(self, one: _Loaded) -> Iterator[Annotation]:
        describe = one.records if self._params.describe_objects else ()
        for records in _conversations(one.records, expressions=self._params.expressions_per_conversation):
            masks = _masks_by_turn(records)
            yield Annotation(
                record_id="+".join(record.record_id for record in records),
                task=records[0].task,
                source=records[0].source,
                turns=described_turns(records, known=describe),
                masks=[mask for _, mask in masks],
                mask_turns=[turn for turn, _ in masks],
                points=records[0].points,
            )
        if any(QUESTION in question for record in one.records for question, _ in record.turns):
            return  # the picture has circles on it
        key = one.row.image_key
        for number, markers in enumerate(self._questions(one)):
            rng = stream("comparisons", self._params.seed, key, number)
            more = comparisons(markers, count=self._params.comparisons_per_marker_question, rng=rng)
            yield Annotation(
                record_id=f"{key}/marker/{number}",
                task="marker",
                source=TEACHER,
                turns=((QUESTION, answer(markers)), *more),
                points=[Point(marker.letter, marker.x, marker.y) for marker in markers],
                draw_points=True,
            )
        has_map = any(record.task == "depth_map" for record in one.records)
        if not has_map and stream("depth_map", self._params.seed, key).random() < self._params.depth_map_share:
            turns = ((DEPTH_MAP_QUESTION, ""),)  # the codes are the whole answer
            yield Annotation(record_id=f"{key}/depth_map", task="depth_map", source=TEACHER, turns=turns)

    def _questions(self, one: _Loaded) -> Iterator[list[Marker]]:
        """Depth-order questions on one image, as many as the parameters ask for and the picture admits."""
        if self._params.markers_per_image == 0:
            return
        rng = stream("markers", self._params.seed, one.row.image_key)
        height, width = one.depth.shape
        small = one.image if one.image.size == (width, height) else one.image.resize((width, height), Image.Resampling.BOX)
        image_HW3 = np.asarray(small)
        areas_HW = _object_areas(one.records, height=height, width=width)
        wanted = self._params.markers_per_image
        for count in rng.choice(self._params.marker_counts, size=_COUNT_TRIES):
            found = sample_questions(
                one.depth, count=int(count), questions=wanted, rng=rng, areas_HW=areas_HW, image_HW3=image_HW3
            )
            yield from (_scaled(markers, one.row.width / width, one.row.height / height) for markers in found)
            wanted -= len(found)
            if wanted == 0:
                return


def _conversations(records: Sequence[Record], *, expressions: int) -> Iterator[tuple[Record, ...]]:
    """Records that make one sample each: up to `expressions` referring records of one data set, any other by itself."""
    referring: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.task == "referring":
            referring[record.source].append(record)
        else:
            yield (record,)
    for some in referring.values():
        for start in range(0, len(some), expressions):
            yield tuple(some[start : start + expressions])


def _masks_by_turn(records: Sequence[Record]) -> list[tuple[int, dict[str, Any]]]:
    """(turn, mask) of all records, each of which asks for its masks in its first turn."""
    first_turns = accumulate((len(record.turns) for record in records), initial=0)
    return [(turn, mask) for turn, record in zip(first_turns, records, strict=False) for mask in record.masks or ()]


def _object_areas(records: Sequence[Record], *, height: int, width: int) -> NDArray[np.float32] | None:
    """Share of the image that the smallest known object under each pixel takes; None where no object is known."""
    masks = {mask["counts"]: mask for record in records for mask in record.masks or ()}
    if not masks:
        return None
    areas_HW = np.zeros((height, width), np.float32)
    for mask in sorted(masks.values(), key=rle.area, reverse=True):
        full_HW = rle.decode(mask)
        rows = np.arange(height) * full_HW.shape[0] // height
        columns = np.arange(width) * full_HW.shape[1] // width
        areas_HW[full_HW[np.ix_(rows, columns)]] = rle.area(mask) / full_HW.size
    return areas_HW


def _scaled(markers: Sequence[Marker], across: float, down: float) -> list[Marker]:
    """Markers on the depth map as markers on the image."""
    if across == down == 1.0:
        return list(markers)
    return [
        Marker(
            letter=marker.letter,
            x=int((marker.x + 0.5) * across),
            y=int((marker.y + 0.5) * down),
            inverse_depth=marker.inverse_depth,
        )
        for marker in markers
    ]


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
