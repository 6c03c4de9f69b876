"""The training loop: one optimizer step at a time, on one process or many, killable at any moment.

Distribution is `accelerate`'s (plain Python, `accelerate launch` or `torchrun`; gloo between processes on CPUs, NCCL on
GPUs). A step's samples are fixed by the step alone and divided among ranks and micro-batches, so the world may change
size between two attempts of a run.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from perceptio_core.schedule import rate_factor
from perceptio_core.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from perceptio_core.training.curves import Curves
from perceptio_core.training.log import Reporter, announce, line
from perceptio_core.training.memory import peak_memory_gib
from perceptio_core.training.optimizer import ParameterGroup, build_optimizer, check_groups, set_rates
from perceptio_core.training.precision import detect_precision
from perceptio_core.training.prefetch import prefetch
from perceptio_core.training.randomness import seed_generators
from perceptio_core.training.sharding import shard, whole

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the loop itself needs to know.

    Attributes:
        steps: optimizer steps of the whole run.
        batch_size: samples per optimizer step, over all ranks and micro-batches.
        accumulation: micro-batches per rank and optimizer step.
        warmup, floor: of the schedule, see `rate_factor`.
        weight_decay: AdamW's, on matrices.
        beta2: AdamW's, in [0, 1).
        clip: largest gradient norm of each parameter group.
        checkpoint_every, validate_every: in steps; both also happen after the last step.
        validation_batches: batches of the validation split per validation; 0 never validates.
        num_workers: prefetching threads.
        seed: of dropout and point sampling.
        sharding: "none": every rank holds the whole model (DDP); "full": a part of it, see `sharding.py`.
    """

    steps: int
    batch_size: int
    accumulation: int
    warmup: float
    floor: float
    weight_decay: float
    beta2: float
    clip: float
    checkpoint_every: int
    validate_every: int
    validation_batches: int
    num_workers: int
    seed: int
    sharding: Literal["none", "full"] = "none"


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Where batches come from; both must be pure functions of their arguments, callable from several threads.

    Attributes:
        train: (step, part, parts) -> the batch with the part-th of `parts` parts of that step's samples, the longest first.
        validation: index -> the index-th batch of the validation split.
    """

    train: Callable[[int, int, int], Any]
    validation: Callable[[int], Any]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished run took.

    Attributes:
        seconds: wall-clock, over all attempts, validation and checkpoints included.
        samples_per_second: training samples over `seconds`.
        peak_memory_gib: largest memory of rank 0's process in this attempt (GPU memory where it trains on one).
        precision: "bf16" or "no" (float32).
        world_size: ranks of this attempt.
    """

    seconds: float
    samples_per_second: float
    peak_memory_gib: float
    precision: str
    world_size: int


def start_accelerator() -> Accelerator:
    """The process's place in the world and its precision; call once, before the model is made."""
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=detect_precision())


def train(
    *,
    accelerator: Accelerator,
    model: nn.Module,
    groups: list[ParameterGroup],
    batches: Batches,
    settings: LoopSettings,
    work: Path,
) -> TrainingResult:
    """Train `model` in place from the newest checkpoint in `work` (or from its present weights) to the last step.

    Args:
        accelerator: from `start_accelerator`.
        model: `model(batch)` returns the losses as scalars, `total` among them; the other names are logged as they are. Every
            batch has to give a gradient to every parameter that trains, or ranks would wait for each other.
        groups: all trainable parameters, with their learning rates.
        batches: training and validation batches.
        settings: see `LoopSettings`.
        work: folder that survives a kill; gets `checkpoints/` and `curves/`.

    Raises:
        ValueError: the batch does not divide among ranks and micro-batches, or the groups do not match the model.
        FloatingPointError: a loss is not finite; the message names the step, the losses and the samples.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    parts = world * settings.accumulation
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size {settings.batch_size} does not divide into {world} ranks x accumulation {settings.accumulation}"
        )
    check_groups(model=model, groups=groups)
    if sharded := settings.sharding == "full" and world > 1:
        shard(model, device=accelerator.device, ranks=world)
        named = dict(model.named_parameters())
        groups = [replace(group, parameters={name: named[name] for name in group.parameters}) for group in groups]
    optimizer = build_optimizer(groups=groups, weight_decay=settings.weight_decay, beta2=settings.beta2)
    parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
    model.to(accelerator.device)
    progress = load_checkpoint(folder=work / "checkpoints", parameters=parameters, optimizer=optimizer)
    progress = progress or Progress(step=0, seconds=0.0)
    wrapped = model if sharded else accelerator.prepare_model(model)
    curves = Curves(folder=work / "curves", step=progress.step) if accelerator.is_main_process else None
    if accelerator.is_main_process:
        announce(
            groups=groups,
            steps=settings.steps,
            batch_size=settings.batch_size,
            accelerator=accelerator,
            step=progress.step,
        )

    def load(position: int) -> Any:
        step, micro = divmod(position, settings.accumulation)
        place = world - 1 - rank if micro % 2 else rank  # to and fro, as the parts come longest first
        return batches.train(step, micro * world + place, parts)

    micro_steps = range(progress.step * settings.accumulation, settings.steps * settings.accumulation)
    stream = prefetch(load=load, positions=micro_steps, workers=settings.num_workers)
    started = time.monotonic() - progress.seconds
    reporter = Reporter(steps=settings.steps, batch_size=settings.batch_size, step=progress.step)
    for step in range(progress.step, settings.steps):
        done = step + 1
        final = done == settings.steps
        model.train()
        schedule = partial(rate_factor, step=step, steps=settings.steps, warmup=settings.warmup, floor=settings.floor)
        factor = schedule(start=0.0)
        set_rates(optimizer=optimizer, factor=schedule)
        means = _Means(accelerator)
        for micro in range(settings.accumulation):
            batch = next(stream)
            seed_generators(settings.seed, "train", step, rank * settings.accumulation + micro)
            last = micro == settings.accumulation - 1
            with accelerator.no_sync(wrapped) if not last else nullcontext():
                with accelerator.autocast():
                    losses = wrapped(send_to_device(batch, accelerator.device))
                accelerator.backward(losses["total"] / settings.accumulation)
            means.add(losses)
            _refuse_non_finite(losses=losses, step=done, batch=batch)
        # Each group by itself: while the new tokens' gradients are a hundred times the masks', one norm for all would
        # leave the mask decoder next to nothing.
        norms = [whole(accelerator.clip_grad_norm_(list(group.parameters.values()), settings.clip)) for group in groups]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        logged = means.over_ranks()
        if curves:
            row = {f"train/{name}": value for name, value in logged.items()}
            row |= {"train/gradient_norm": math.hypot(*map(float, norms)), "train/rate_factor": factor}
            curves.log(step=done, metrics=row)
            reporter.step(done=done, losses=logged, final=final)
        if settings.validation_batches and (done % settings.validate_every == 0 or final):
            held_out = _validate(accelerator=accelerator, model=model, load=batches.validation, settings=settings)
            if curves:
                curves.log(step=done, metrics={f"val/{name}": value for name, value in held_out.items()})
                logger.info("validation after %d steps: %s", done, line(held_out))
        if done % settings.checkpoint_every == 0 or final:
            save_checkpoint(
                folder=work / "checkpoints",
                parameters=parameters,
                optimizer=optimizer,
                progress=Progress(step=done, seconds=time.monotonic() - started),
                writes=accelerator.is_main_process,
            )
    if curves:
        curves.close()
    accelerator.wait_for_everyone()
    seconds = time.monotonic() - started
    return TrainingResult(
        seconds=seconds,
        samples_per_second=settings.steps * settings.batch_size / max(seconds, 1e-9),
        peak_memory_gib=peak_memory_gib(accelerator.device),
        precision=accelerator.mixed_precision,
        world_size=world,
    )


@torch.no_grad()
def _validate(
    *, accelerator: Accelerator, model: nn.Module, load: Callable[[int], Any], settings: LoopSettings
) -> dict[str, float]:
    """Mean losses over the validation batches, which the ranks divide among themselves."""
    model.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    count = settings.validation_batches
    # Every rank runs equally many batches, so that all take part in the sum; a repeated batch weighs nothing.
    mine = range(rank, math.ceil(count / world) * world, world)
    means = _Means(accelerator)
    stream = prefetch(load=lambda index: load(index % count), positions=mine, workers=settings.num_workers)
    for index, batch in zip(mine, stream, strict=True):
        seed_generators(settings.seed, "validation", index)
        with accelerator.autocast():
            losses = model(send_to_device(batch, accelerator.device))
        means.add(losses, weight=float(index < count))
    return means.over_ranks()


class _Means:
    """Means of losses over micro-batches and ranks. A part that is exactly zero says that the batch held nothing it
    speaks of (no masks, no depth span); it does not count, or sparse tasks would look learnt. All ranks must add the
    same names, in the same order.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, losses: Mapping[str, torch.Tensor], *, weight: float = 1.0) -> None:
        """Add the losses of one batch."""
        for name, value in losses.items():
            value = value.detach().float()
            pair = torch.stack([value, (value != 0).float()]) * weight
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def over_ranks(self) -> dict[str, float]:
        """The means, in one exchange between the ranks; parts that no batch spoke of are left out."""
        sums = self._accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum")
        pairs = dict(zip(self._sums, sums.tolist(), strict=True))
        return {name: total / count for name, (total, count) in pairs.items() if count}


def _refuse_non_finite(*, losses: Mapping[str, torch.Tensor], step: int, batch: Any) -> None:
    if math.isfinite(float(losses["total"].detach())):
        return
    values = {name: float(value.detach()) for name, value in losses.items()}
    keys = batch.get("keys", "unknown") if isinstance(batch, Mapping) else getattr(batch, "keys", "unknown")
    raise FloatingPointError(f"step {step}: the loss is not finite ({line(values)}); samples: {keys}")
