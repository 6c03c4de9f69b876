"""Batches from the joint shards: which samples, in which order, as tensors."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.loading.balance import deal
from perceptio_core.data.loading.dataset import JointDataset
from perceptio_core.data.loading.labels import READING_TASK, TASK, labelled, ordered_turns, readings
from perceptio_core.data.loading.mixture import Draw, Drawn, MixtureSampler
from perceptio_core.data.loading.read_ahead import ReadAhead
from perceptio_core.data.rle import decode
from perceptio_core.grammar import PAPER_ORDER, Span
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.params.cotrain import ALL_MARKERS, MarkerQuestions
from perceptio_core.params.shard_source import ShardSource
from perceptio_core.training.loop import Batches


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """A sample as the processor takes it: its masks as arrays."""

    key: str
    image: Image.Image
    turns: Sequence[tuple[str, str | int]]
    masks: Sequence[NDArray[np.bool_]]
    mask_turns: Sequence[int]
    depth_codes: Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class JointBatches(Batches):
    """Batches of the mixture.

    Attributes:
        drawn: steps -> what they draw, by task.
    """

    drawn: Callable[[int], dict[str, Drawn]]


def joint_batches(
    *,
    shards: Path,
    processor: PerceptioProcessor,
    mixture: Mapping[str, float],
    spans: Mapping[str, Sequence[Span]] = MappingProxyType({}),
    batch_size: int,
    validate: bool,
    seed: int,
    markers: MarkerQuestions = ALL_MARKERS,
    own_codes: float = 0.0,
    steps: int = 1,
    source: ShardSource | None = None,
    shard_window: int | None = None,
) -> JointBatches:
    """Training and validation batches as pure functions of step, part and index.

    The control sees the same samples: which perception spans a sample's sequence has is the processor's configuration.
    Without [SEG], a referring sample trains the text of its answer alone; samples of the task depth_map, which would have
    nothing left, must have weight 0, and their share of the draws goes to the other tasks. So the control trains on as
    many samples as the full model, and on no fewer of any other task.

    Args:
        shards: output of the stage `joint_shards`.
        processor: makes the tensors.
        mixture: relative weight of each task.
        spans: of the tasks that it names, the perception spans that their sequences have; the others' have all that the
            processor's configuration has.
        batch_size: samples per optimizer step, and per validation batch.
        validate: whether validation batches will be asked for; they follow the same mixture, less the tasks that the
            validation split has no sample of.
        seed: of the order of samples.
        markers: which of the depth-order labels train; the validation batches hold the same kinds, without a limit.
        own_codes: share of the steps, at the end of training, whose depth spans are read with the model's own codes; it grows
            evenly from 0 at the first step.
        steps: of the whole training.
        source: store to read the shards from (see `JointDataset`); None: they lie in the folder. The batches are the same.
        shard_window: shards of a task whose training samples are mixed with each other (see `MixtureSampler`).

    Raises:
        ValueError: no shards, a task with weight and without training samples, or fewer labels than `markers` wants.
        StoreError: the store does not give the shards; with a batch, too.
    """
    train = JointDataset(shards, "train", source)
    train_tasks = _tasks(train, markers=markers, limit=markers.limit, seed=seed)
    train_sampler = MixtureSampler(tasks=train_tasks, weights=mixture, seed=seed, shard_S=train.shard_S, window=shard_window)

    ahead = None
    if train.cache is not None:

        def needs(step: int) -> list[str]:
            return train.shards_of(draw.sample for draw in train_sampler.draws(step, batch_size))

        ahead = ReadAhead(train.cache, needs=needs, steps=steps)

    lengths_S = processor.estimated_tokens(sizes_S2=train.sizes_S2, characters_S=train.characters_S)

    def train_batch(step: int, part: int, parts: int) -> PerceptioBatch:
        if ahead is not None:
            ahead.reached(step)
        draws = train_sampler.draws(step, batch_size)
        mine = deal(draws, lengths_S[[draw.sample for draw in draws]].tolist(), parts=parts)[part]
        batch = processor.collate([_decoded(train, draw, markers, spans) for draw in mine])
        return replace(batch, own_codes=_is_of_own_codes(step, share=own_codes / steps))

    def drawn(steps: int) -> dict[str, Drawn]:
        return train_sampler.drawn(steps, batch_size)

    if not validate:
        return JointBatches(train=train_batch, validation=_no_validation, drawn=drawn)
    held_out = JointDataset(shards, "val", source)
    held_out_tasks = _tasks(held_out, markers=markers, limit=None, seed=seed)
    weights = {task: weight for task, weight in mixture.items() if len(held_out_tasks.get(task, ()))}
    held_out_sampler = MixtureSampler(tasks=held_out_tasks, weights=weights, seed=seed)

    def validation_batch(index: int) -> PerceptioBatch:
        draws = held_out_sampler.draws(index, batch_size)
        return processor.collate([_decoded(held_out, draw, markers, spans) for draw in draws])

    return JointBatches(train=train_batch, validation=validation_batch, drawn=drawn)


def _tasks(dataset: JointDataset, *, markers: MarkerQuestions, limit: int | None, seed: int) -> dict[str, NDArray[np.int64]]:
    """Indices by task; codes are read off marked pictures, also off those whose labels are left out by the limit."""
    marked = labelled(dataset, wanted=markers, limit=None, seed=seed)
    kept = labelled(dataset, wanted=markers, limit=limit, seed=seed)
    return {**dataset.tasks, TASK: kept, READING_TASK: marked}


def _decoded(dataset: JointDataset, draw: Draw, markers: MarkerQuestions, spans: Mapping[str, Sequence[Span]]) -> _Decoded:
    sample = dataset[draw.sample]
    turns: list[tuple[str, str | int]] = list(sample.turns)
    if draw.task == READING_TASK:
        turns = list(readings(sample))
    elif draw.task == TASK:
        turns = list(ordered_turns(sample, wanted=markers))
    written = spans.get(draw.task, PAPER_ORDER)
    masks = sample.masks if "segmentation" in written else []
    return _Decoded(
        key=sample.key,
        image=sample.image,
        turns=turns,
        masks=[decode(rle) for rle in masks],
        mask_turns=sample.mask_turns if masks else [],
        depth_codes=sample.depth_codes if "depth" in written else None,
    )


def _is_of_own_codes(step: int, *, share: float) -> bool:
    """Whether a step is one of those; of the first s steps share * s ** 2 / 2 are, spread evenly."""
    return math.floor(share * (step + 1) ** 2 / 2) > math.floor(share * step**2 / 2)


def _no_validation(index: int) -> PerceptioBatch:
    raise ValueError(f"validation batch {index} was asked for, but validation is switched off")
