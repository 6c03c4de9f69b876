"""A tiny model and deterministic batches for the tests of the training loop; as a script, one run that can be killed.

Usage: python tests/training_toy.py WORK STEPS [--die-after STEP] [--dropout P] [--sharding full]
"""

import argparse
import json
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from perceptio_core.training import loop
from perceptio_core.training.loop import Batches, LoopSettings, start_accelerator, train
from perceptio_core.training.optimizer import ParameterGroup
from perceptio_core.training.sharding import whole

FLOAT32 = "TRAINING_TOY_FLOAT32"
"""Environment variable: train in float32, whatever the machine can do."""


class ToyModel(nn.Module):
    """Two layers with dropout (which draws from the global generator) and a frozen third."""

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 8)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(8, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.die_after: int | None = None
        self.calls = 0

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += self.training
        if self.die_after is not None and self.training and self.calls > self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        hidden = self.dropout(torch.tanh(self.first(batch["x"])))
        error = self.frozen(self.second(hidden)) - batch["y"]
        squared, absolute = error.square().mean(), error.abs().mean()
        return {"squared": squared, "absolute": absolute, "total": squared + absolute}

    def groups(self) -> list[ParameterGroup]:
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        first = {name: p for name, p in named.items() if name.startswith("first")}
        second = {name: p for name, p in named.items() if name not in first}
        return [
            ParameterGroup(name="first", rate=1e-2, parameters=first),
            ParameterGroup(name="second", rate=3e-2, parameters=second),
        ]


def samples(*, stream: int, step: int, batch_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 * stream + step)
    x = torch.randn(batch_size, 4, generator=generator)
    return {"x": x, "y": x.sum(dim=1, keepdim=True)}


def batches(*, batch_size: int) -> Batches:
    def part_of(step: int, part: int, parts: int) -> dict[str, Tensor]:
        size = batch_size // parts
        whole = samples(stream=0, step=step, batch_size=batch_size)
        return {name: value[part * size : (part + 1) * size] for name, value in whole.items()}

    return Batches(train=part_of, validation=lambda index: samples(stream=1, step=index, batch_size=batch_size))


def settings(*, steps: int, batch_size: int = 8, accumulation: int = 1) -> LoopSettings:
    return LoopSettings(
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        warmup=0.2,
        floor=0.1,
        weight_decay=0.05,
        beta2=0.999,
        clip=1.0,
        checkpoint_every=5,
        validate_every=4,
        validation_batches=3,
        num_workers=2,
        seed=7,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--sharding", default="none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    if FLOAT32 in os.environ:
        loop.detect_precision = lambda: "no"
    accelerator = start_accelerator()
    model = ToyModel(dropout=arguments.dropout)
    model.die_after = arguments.die_after
    run = replace(settings(steps=arguments.steps), sharding=arguments.sharding)
    result = train(
        accelerator=accelerator,
        model=model,
        groups=model.groups(),
        batches=batches(batch_size=run.batch_size),
        settings=run,
        work=arguments.work,
    )
    weights = {name: whole(value) for name, value in model.state_dict().items()}
    if accelerator.is_main_process:
        save_file(weights, arguments.work / "final.safetensors")
        (arguments.work / "result.json").write_text(json.dumps({"world_size": result.world_size}), encoding="utf-8")
    accelerator.end_training()


if __name__ == "__main__":
    main()
