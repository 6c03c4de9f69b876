"""The bookkeeping of a pretraining run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from perceptio_core.foundations import run as bookkeeping
from perceptio_core.foundations.run import PretrainingRun


def a_run(work: Path, *, steps: int) -> PretrainingRun:
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    return PretrainingRun(modules={"model": model}, steps=steps, lr=1e-2, warmup=2, weight_decay=0.0, work=work)


def batch(step: int) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([[float(step), 1.0]])}


def follow(run: PretrainingRun, *, workers: int = 0, spoiled: int | None = None) -> list[tuple[int, list[float]]]:
    """Train to the end on what the model says, but for a step whose loss is no number; the steps and their batches."""
    seen = []
    for step, made in run.batches(batch, workers=workers):
        loss = run.modules["model"](made["x"]).sum()
        run.update(loss * float("nan") if step == spoiled else loss, {})
        seen.append((step, made["x"][0].tolist()))
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_every_step_gets_its_own_batch_whoever_makes_it(tmp_path, workers):
    run = a_run(tmp_path, steps=7)
    run.step = 2  # as after a checkpoint
    assert follow(run, workers=workers) == [(step, [float(step), 1.0]) for step in range(2, 7)]


def test_a_loss_that_was_once_not_finite_stops_the_run_at_its_next_report(tmp_path, monkeypatch):
    monkeypatch.setattr(bookkeeping, "REPORT_EVERY", 3)
    run = a_run(tmp_path, steps=6)
    with pytest.raises(FloatingPointError, match="the loss became nan in the 3 steps before step 3"):
        follow(run, spoiled=1)


def test_a_figure_that_a_batch_says_nothing_of_keeps_its_mean(tmp_path):
    run = a_run(tmp_path, steps=3)
    figures = iter([float("nan"), 2.0, float("nan")])
    for _, made in run.batches(batch, workers=0):
        run.update(run.modules["model"](made["x"]).sum(), {"share": next(figures)})
    assert "share=2.000" in run._report()
