"""Perceptio-1B, -4B and -8B on one GPU: ``python -m benchmarks.full_size --out full_size.json``.

Weights are random, shapes and dtypes are those of co-training: the base in bf16, what trains in float32. Of each size:

- training steps as the stage `cotrain` runs them on one of the profile's GPUs: all losses, LoRA, gradient checkpointing, AdamW,
  SAM2 hiera-L at 1024, `accumulation` micro-batches of two samples, each a picture of 640 x 480 (13 tiles), five expressions
  with masks and a depth span; seconds a step, tokens a second, share of the peak (`benchmarks.flops`), and the memory beside
  its estimate;
- one micro-batch without gradient checkpointing: its memory beside its estimate;
- an answer with masks, 100 depth codes and text, for one question and for sixteen at a time: tokens a second.

Before them attention over a packed row by itself (`benchmarks.attention`). Every measurement stands alone: one that fails
leaves its traceback in the result and the others go on, and what is measured is on the disk at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, InternVLConfig, InternVLProcessor

from benchmarks.architectures import BASES, INTERNVL3_1B, INTERNVL3_8B, processor_of
from benchmarks.attention import Shape, compare, now
from benchmarks.flops import PEAK, step_flops
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.model.adapters import add_adapters, merge_adapters
from perceptio_core.model.assembly import join
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.params.depth_codebook import DepthCodebookParams
from perceptio_core.params.profile import load_profile
from perceptio_core.segmentation.sam2 import build_sam2, official_config
from perceptio_core.training.memory_estimate import Computation, StepShape, estimate_memory
from perceptio_core.training.optimizer import ParameterGroup, build_optimizer

ROWS = {
    "two samples": (3700, 3700),
    "fourteen samples": (3700, 3200, 900, 420, 3600, 650, 3700, 380, 1500, 700, 3700, 560, 3400, 390),
    "64 short samples": (200,) * 64,
}
"""Tokens of the samples of the packed rows that attention is measured on."""

MICRO_BATCH = 2  # samples
MASKS = 5  # of a sample
PICTURE = (480, 640)  # height, width


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: the sizes of the parts, the processor, and how `cotrain` would train them.

    Attributes:
        vlm: configuration of InternVL.
        processor: of `vlm`, fresh.
        sam2: configuration of SAM2.
        codebook: parameters of the depth codebook.
        cotrain: parameters of the training.
    """

    vlm: InternVLConfig
    processor: InternVLProcessor
    sam2: Mapping[str, Any]
    codebook: DepthCodebookParams
    cotrain: CotrainParams


def published(name: str) -> Subject:
    """The subject of a profile of the paper's sizes."""
    profile = load_profile(name)
    return Subject(
        vlm=BASES[name].config(),
        processor=processor_of(BASES[name].tokens),
        sam2=official_config("sam2.1_hiera_l"),
        codebook=profile.depth_codebook,
        cotrain=profile.variant("full"),
    )


def build(
    subject: Subject, *, device: torch.device, bf16: bool
) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor, dict[str, dict[str, nn.Parameter]]]:
    """The subject's model in training mode with random weights and adapters, its processor, and what trains, by group.

    Args:
        subject: what is built.
        device: where; the weights are drawn where they stay.
        bf16: whether the base is in bf16, as published, or in float32.
    """
    params, book = subject.cotrain, subject.codebook
    with torch.device(device):
        vlm = AutoModelForImageTextToText.from_config(subject.vlm, dtype=torch.bfloat16 if bf16 else torch.float32)
        sam = build_sam2(subject.sam2)
        codebook = DepthCodebook(num_codes=book.num_codes, resolution=book.resolution, widths=book.widths, dim=book.dim)
    model, processor = join(
        vlm=vlm,
        processor=subject.processor,
        sam=sam,
        sam2_config=subject.sam2,
        codebook=codebook,
        order=[span for span in params.order if getattr(params.spans, span)],
        loss_weights=params.loss_weights.model_dump(),
        max_tiles=params.max_tiles,
        seed=params.seed,
    )
    lora = params.lora
    with torch.device(device):
        groups = add_adapters(
            model, rank=lora.r, alpha=lora.alpha, dropout=lora.dropout, train_vision_tower=params.train_vision_tower
        )
    return model.to(device).train(), processor, groups


@dataclass(kw_only=True)
class Record:
    """Measurements by name, in a file as soon as they are there.

    Attributes:
        path: the JSON file.
        deadline: on the clock of `time.monotonic`; no measurement begins after it.
        content: what the file holds.
    """

    path: Path
    deadline: float
    content: dict[str, Any] = field(default_factory=dict)

    def measure(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do the work and keep what it gives, or its traceback, or that there was no time for it."""
        started = time.monotonic()
        if started > self.deadline:
            result: dict[str, Any] = {"skipped": "no time left"}
        else:
            try:
                result = work()
            except Exception:  # whatever it is, the other measurements are worth having
                traceback.print_exc()
                result = {"failed": traceback.format_exc()}
        result["took_seconds"] = round(time.monotonic() - started, 2)
        self.content.setdefault("measurements", {})[name] = result
        self.write()
        print(name, json.dumps({key: value for key, value in result.items() if key != "failed"}), flush=True)

    def write(self) -> None:
        """Write the file anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")


class Bench:
    """One subject on one device, its model built with random weights of the real kinds.

    Args:
        subject: what is measured.
        device: where.
    """

    def __init__(self, subject: Subject, *, device: torch.device) -> None:
        self.params, self.device = subject.cotrain, device
        self.bf16 = device.type == "cuda"
        self.model, self.processor, named = build(subject, device=device, bf16=self.bf16)
        rates = self.params.learning_rates.model_dump()
        self._groups = [ParameterGroup(name=name, rate=rates[name], parameters=named[name]) for name in named]
        self._optimizer = build_optimizer(groups=self._groups, weight_decay=self.params.weight_decay, beta2=self.params.beta2)
        self._batches = [
            self.processor.collate([self._sample(MICRO_BATCH * micro + place) for place in range(MICRO_BATCH)])
            for micro in range(self.params.accumulation)
        ]

    def training(self, *, steps: int, deadline: float) -> dict[str, Any]:
        """Steps as one GPU of the profile does them: one to warm up, then up to `steps`, fewer where time runs out."""
        self.model.checkpoint_layers(self.params.gradient_checkpointing)
        self._forget_peak()
        warm_up = self._step(self._batches)
        taken, losses = [], []
        for _ in range(steps):
            started = now(self.device)
            losses.append(self._step(self._batches))
            taken.append(now(self.device) - started)
            if time.monotonic() > deadline:
                break
        seconds = statistics.median(taken)
        flops = [step_flops(self.model, batch.to(self.device)) for batch in self._batches]
        parts = {name: sum(one[name] for one in flops) / 1e12 for name in flops[0]}
        tokens = sum(sum(batch.lengths) for batch in self._batches)
        result = {
            "steps": len(taken),
            "samples_per_step": MICRO_BATCH * len(self._batches),
            "micro_batches": len(self._batches),
            "shape": vars(StepShape.largest(self._batches)),
            "seconds_per_step": seconds,
            "tokens_per_second": tokens / seconds,
            "samples_per_second": MICRO_BATCH * len(self._batches) / seconds,
            "tflop_per_step": sum(parts.values()),
            "tflop_by_part": parts,
            "tflop_per_second": sum(parts.values()) / seconds,
            "loss_before": warm_up,
            "loss_after": losses[-1],
        }
        if self.device.type == "cuda":
            result["mfu"] = sum(parts.values()) * 1e12 / seconds / PEAK
        return result | self._memory(self._batches, checkpointing=self.params.gradient_checkpointing)

    def plain(self) -> dict[str, Any]:
        """Steps of one micro-batch without gradient checkpointing, after `training`: seconds of the second, and memory."""
        self.model.checkpoint_layers(False)
        self._forget_peak()
        self._step(self._batches[:1])
        started = now(self.device)
        self._step(self._batches[:1])
        return {"seconds_per_step": now(self.device) - started} | self._memory(self._batches[:1], checkpointing=False)

    def finish(self) -> None:
        """Forget the optimizer, fold the adapters in, and take on the dtype that a saved checkpoint of such a base has."""
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        merge_adapters(self.model)
        self.model.eval()
        for parameter in self.model.vlm.parameters():
            parameter.data = parameter.data.to(self.model.vlm.dtype if not self.bf16 else torch.bfloat16)

    def generation(self, *, questions: int) -> dict[str, Any]:
        """Answers with up to `MASKS` masks, a depth map and up to 8 tokens of text, after `finish`; first, masks alone."""
        images = [Image.fromarray(_noise(number)) for number in range(questions)]
        prompts = self.processor.prompts(images, ["Please segment the cup, and tell me what is on the table."] * questions)
        self._forget_peak()
        self.model.answer(prompts, segment=True, depth=False, max_masks=MASKS, max_new_tokens=1)
        started = now(self.device)
        answers = self.model.answer(prompts, segment=True, depth=True, max_masks=MASKS, max_new_tokens=8)
        seconds = now(self.device) - started
        tokens = sum(len(answer.ids) + 1 for answer in answers)
        result = {
            "questions": questions,
            "prompt_tokens": int(prompts.attention_mask_BT.sum()),
            "tokens": tokens,
            "masks": sum(len(answer.masks) for answer in answers),
            "depth_codes": sum(len(answer.parsed.depth_codes or ()) for answer in answers),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }
        return result | self._peak()

    def _step(self, batches: Sequence[PerceptioBatch]) -> float:
        """One optimizer step, as `perceptio_core.training.loop` does it; the mean loss."""
        total = 0.0
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.model(batch.to(self.device))["total"]
            (loss / len(batches)).backward()
            total += float(loss.detach())
        for group in self._groups:
            torch.nn.utils.clip_grad_norm_(list(group.parameters.values()), self.params.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if not np.isfinite(total):
            raise FloatingPointError(f"the loss is {total}")
        return total / len(batches)

    def _memory(self, batches: Sequence[PerceptioBatch], *, checkpointing: bool) -> dict[str, Any]:
        """The estimate that `cotrain` would print for these micro-batches, beside the measured peak where there is one."""
        estimate = estimate_memory(
            self.model,
            shape=StepShape.largest(batches),
            computation=Computation(
                bf16=self.bf16, cpu=self.device.type == "cpu", checkpointing=checkpointing, accumulation=len(batches)
            ),
        )
        peak = self._peak()
        parts = {name: size / 2**30 for name, size in estimate.parts.items()}
        result = peak | {"estimated_gib": estimate.peak_gib, "estimated_gib_by_part": parts}
        if peak:
            result["estimated_over_measured"] = estimate.peak_gib / peak["peak_gib"]
        return result

    def _forget_peak(self) -> None:
        """What an earlier measurement left behind must not show in the next one's memory."""
        self._optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        return {
            "peak_gib": torch.cuda.max_memory_allocated(self.device) / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved(self.device) / 2**30,
        }

    def _sample(self, number: int) -> Sample:
        """A picture with five expressions, each with its mask, and a depth span."""
        draw = np.random.default_rng(number)
        questions = [f"Please segment the {word} one here." for word in ("left", "right", "small", "large", "upper")]
        answers = ["Sure, it is this one."] * len(questions)
        codes = draw.integers(0, self.model.codebook.num_codes, self.model.config.depth_tokens)
        return Sample(
            key=f"sample-{number}",
            image=Image.fromarray(_noise(number)),
            turns=list(zip(questions, answers, strict=True)),
            masks=[draw.random(PICTURE) > 0.5 for _ in range(MASKS)],
            mask_turns=list(range(MASKS)),
            depth_codes=[int(code) for code in codes],
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the processor reads of a sample."""

    key: str
    image: Image.Image
    turns: list[tuple[str, str]]
    masks: list[NDArray[np.bool_]]
    mask_turns: list[int]
    depth_codes: list[int]


def _noise(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (*PICTURE, 3), dtype=np.uint8)


def measure_attention(record: Record, *, device: torch.device, shapes: Mapping[str, Shape]) -> None:
    """Attention by itself, of every shape."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name, shape in shapes.items():
        record.measure(f"attention, {name}", partial(compare, shape, device=device, dtype=dtype))


def measure_subject(record: Record, name: str, make: Callable[[], Subject], *, device: torch.device, steps: int) -> None:
    """Everything that is measured of one subject."""
    bench: list[Bench] = []

    def build() -> dict[str, Any]:
        bench.append(Bench(make(), device=device))
        return {"parameters": sum(parameter.numel() for parameter in bench[0].model.parameters())}

    def finish() -> dict[str, Any]:
        bench[0].finish()
        return {}

    record.measure(f"{name}, building", build)
    if bench:
        record.measure(f"{name}, training", partial(bench[0].training, steps=steps, deadline=record.deadline))
        record.measure(f"{name}, without checkpointing", bench[0].plain)
        record.measure(f"{name}, merging", finish)
        for questions in (1, 16):
            record.measure(f"{name}, generation of {questions}", partial(bench[0].generation, questions=questions))
    bench.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the libraries."""
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "peak_tflop_per_second": PEAK / 1e12,
        }
    return found


def main() -> None:
    """Measure and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("artifacts/full_size.json"), help="where the measurements go")
    parser.add_argument("--budget", type=float, default=75.0, help="seconds after which no measurement begins")
    parser.add_argument("--steps", type=int, default=2, help="most training steps that are timed, of each size")
    parser.add_argument("--profiles", nargs="*", default=list(BASES), choices=list(BASES), help="the sizes")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("a CUDA device is needed; tests/test_benchmarks.py runs the same code at a tiny size on the CPU")
    device = torch.device("cuda")
    record = Record(path=arguments.out, deadline=time.monotonic() + arguments.budget, content=describe(device))
    shapes = {
        f"{size}, {row}": Shape(heads=a.heads, key_heads=a.key_heads, dim=a.head_dim, lengths=lengths)
        for size, a in (("1B", INTERNVL3_1B), ("8B", INTERNVL3_8B))
        for row, lengths in ROWS.items()
    }
    measure_attention(record, device=device, shapes=shapes)
    for name in arguments.profiles:
        measure_subject(record, name, partial(published, name), device=device, steps=arguments.steps)


if __name__ == "__main__":
    main()
