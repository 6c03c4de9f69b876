"""The real model on two ranks, one of which has masks and depth in a step while the other has neither.

Its `main` is what each rank runs: ``python tests/ranks.py test_training_ranks WORK``, where WORK holds what `tiny_foundations`
writes; rank r leaves ``WORK/<sharding>-<r>.safetensors``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

import training_toy as toy
from perceptio_core.grammar import PAPER_ORDER
from perceptio_core.model.adapters import add_adapters
from perceptio_core.model.assembly import assemble
from perceptio_core.training import loop
from perceptio_core.training.loop import Batches, start_accelerator, train
from perceptio_core.training.optimizer import ParameterGroup
from perceptio_core.training.sharding import whole
from tiny import LOSS_WEIGHTS, tiny_foundations, tiny_sample

KINDS = (
    ({"masks": 2, "depth": True}, {"masks": 0, "depth": False}),
    ({"masks": 0, "depth": False}, {"masks": 1, "depth": False}),
    ({"masks": 0, "depth": True}, {"masks": 0, "depth": False}),
)
"""What the two parts of each step hold."""


def trained(work: Path, name: str, *, accumulation: int, sharding: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that train, before and after a run that leaves its checkpoints in ``work/name``."""
    accelerator = start_accelerator()
    model, processor = assemble(
        foundations=work / "foundations",
        codebook=work / "codebook",
        order=PAPER_ORDER,
        loss_weights=LOSS_WEIGHTS,
        max_tiles=1,
        seed=0,
    )
    found = add_adapters(model, rank=4, alpha=8, dropout=0.0, train_vision_tower=False)
    groups = [ParameterGroup(name=name, rate=1e-2, parameters=parameters) for name, parameters in found.items()]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def batch(step: int, part: int, parts: int) -> Any:
        assert parts == 2
        return processor.collate([tiny_sample(2 * step + part, **KINDS[step][part])])

    settings = toy.settings(steps=len(KINDS), batch_size=2, accumulation=accumulation)
    train(
        accelerator=accelerator,
        model=model,
        groups=groups,
        batches=Batches(train=batch, validation=lambda index: batch(index, 0, 2)),
        settings=replace(settings, sharding=sharding, validation_batches=0, weight_decay=0.0),
        work=work / name,
    )
    return before, {name: whole(p.detach()).clone() for name, p in model.named_parameters() if p.requires_grad}


def test_ranks_with_and_without_masks_and_depth_train_the_same_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ranks end with the same weights, which are those of one process that takes the two parts one after the other."""
    tiny_foundations(tmp_path)
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), Path(__file__).stem, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, check=False, timeout=240, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]

    monkeypatch.setattr(loop, "detect_precision", lambda: "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    before, alone = trained(tmp_path, "alone", accumulation=2, sharding="none")
    AcceleratorState._reset_state(reset_partial_state=True)
    for sharding in ("none", "full"):
        first, second = (load_file(tmp_path / f"{sharding}-{rank}.safetensors") for rank in range(2))
        assert first.keys() == second.keys() == alone.keys()
        assert all(torch.equal(first[name], second[name]) for name in alone), sharding
        for name, value in alone.items():
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=f"{sharding}: {name}")
    still = [name for name, value in alone.items() if torch.equal(value, before[name])]
    # Of the heads that need a mask, only what mathematics keeps from moving: a key's bias cancels in the softmax.
    assert all(name.endswith("k_proj.bias") for name in still), still


def main() -> None:
    work = Path(sys.argv[1])
    loop.detect_precision = lambda: "no"
    rank = os.environ["RANK"]
    for sharding in ("none", "full"):
        _, weights = trained(work, sharding, accumulation=1, sharding=sharding)
        save_file(weights, work / f"{sharding}-{rank}.safetensors")
