"""The training loop: exact resume after a kill, ranks against one process, accumulation, curves, refusals."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from dvc.repo import Repo
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import training_toy as toy
from perceptio_core.training.curve_files import read_curve
from perceptio_core.training.curves import Curves
from perceptio_core.training.loop import Batches, start_accelerator, train
from perceptio_core.training.optimizer import ParameterGroup
from stages.cotrain import processes_here

SCRIPT = str(Path(toy.__file__))
METRICS = Path("curves/plots/metrics")


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In float32 on every machine: bf16 rounds the parts of a batch otherwise than the whole. Also for subprocesses."""
    monkeypatch.setenv(toy.FLOAT32, "1")
    monkeypatch.setattr("perceptio_core.training.loop.detect_precision", lambda: "no")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(work: Path, *arguments: str, launcher: tuple[str, ...] = (SCRIPT,)) -> int:
    command = [sys.executable, *launcher, str(work), *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(SCRIPT).parents[1])}
    return subprocess.run(command, check=False, timeout=240, env=environment).returncode


def train_here(
    work: Path, *, steps: int, accumulation: int = 1, batches: Batches | None = None, dropout: float = 0.0
) -> toy.ToyModel:
    settings = toy.settings(steps=steps, accumulation=accumulation)
    model = toy.ToyModel(dropout=dropout)
    train(
        accelerator=start_accelerator(),
        model=model,
        groups=model.groups(),
        batches=batches or toy.batches(batch_size=settings.batch_size),
        settings=settings,
        work=work,
    )
    return model


def test_kill_and_resume_equals_one_run_bit_for_bit(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    expected = train_here(straight, steps=10, dropout=0.5).state_dict()
    assert run(killed, "10", "--die-after", "7") == -9
    steps, _ = read_curve(killed / METRICS / "train/total.tsv")
    assert steps == [1, 2, 3, 4, 5, 6, 7]  # two steps beyond the checkpoint, which the resumed run does again
    resumed = train_here(killed, steps=10, dropout=0.5).state_dict()

    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    for curve in ("train/total", "train/squared", "val/total", "train/gradient_norm"):
        one, two = (read_curve(folder / METRICS / f"{curve}.tsv") for folder in (straight, killed))
        assert one == two, curve
    assert read_curve(straight / METRICS / "val/total.tsv")[0] == [4, 8, 10]
    summary = json.loads((killed / "curves/metrics.json").read_text())
    assert summary["step"] == 10
    assert {path.name for path in (killed / "checkpoints").iterdir()} == {"step-00000005", "step-00000010"}


TWO_RANKS = (*processes_here(2), SCRIPT)
FORKED_RANKS = (str(Path(SCRIPT).with_name("ranks.py")), "training_toy")


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_ranks_follow_one_process_with_the_same_samples(tmp_path: Path, sharding: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    expected = train_here(one, steps=6).state_dict()
    assert run(two, "6", "--dropout", "0", "--sharding", sharding, launcher=FORKED_RANKS) == 0
    assert json.loads((two / "result.json").read_text()) == {"world_size": 2}
    for curve in ("train/total", "val/total"):
        steps_one, values_one = read_curve(one / METRICS / f"{curve}.tsv")
        steps_two, values_two = read_curve(two / METRICS / f"{curve}.tsv")
        assert steps_one == steps_two
        assert values_two == pytest.approx(values_one, rel=1e-5), curve
    for name, value in load_file(two / "final.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.on_request
def test_a_sharded_run_goes_on_without_sharding_and_back(tmp_path: Path) -> None:
    """A checkpoint is the same whoever writes it: 5 steps on two ranks, 5 on one, 5 on two follow 15 on one."""
    straight, changing = tmp_path / "straight", tmp_path / "changing"
    expected = train_here(straight, steps=15).state_dict()
    sharded = ("15", "--dropout", "0", "--sharding", "full")
    assert run(changing, *sharded, "--die-after", "5", launcher=TWO_RANKS) != 0
    assert [path.name for path in (changing / "checkpoints").iterdir()] == ["step-00000005"]
    assert run(changing, "15", "--dropout", "0", "--die-after", "5") == -9
    assert run(changing, *sharded, launcher=TWO_RANKS) == 0
    for name, value in load_file(changing / "final.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    one, two = (load_file(folder / "checkpoints/step-00000015/optimizer.safetensors") for folder in (straight, changing))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-7)
    steps = read_curve(changing / METRICS / "train/total.tsv")[0]
    assert steps == list(range(1, 16))


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    whole = train_here(tmp_path / "whole", steps=4)
    parts = train_here(tmp_path / "parts", steps=4, accumulation=4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert read_curve(tmp_path / "parts" / METRICS / "train/total.tsv")[1] == pytest.approx(
        read_curve(tmp_path / "whole" / METRICS / "train/total.tsv")[1], rel=1e-5
    )


def test_first_step_is_adamw_by_hand(tmp_path: Path) -> None:
    """One AdamW step from zero moments moves each weight by rate * sign(gradient), after the decay rate * 0.05 * w."""
    start = toy.ToyModel(dropout=0.0)
    losses = start(toy.samples(stream=0, step=0, batch_size=8))
    losses["total"].backward()
    settings = toy.settings(steps=1)
    assert round(settings.warmup * settings.steps) == 0  # so the first step has the full rate
    trained = train_here(tmp_path, steps=1)
    weight, gradient = start.first.weight.detach(), start.first.weight.grad
    assert gradient is not None
    expected = weight * (1 - 1e-2 * 0.05) - 1e-2 * gradient.sign()
    torch.testing.assert_close(trained.first.weight.detach(), expected, rtol=0, atol=1e-5)
    bias, gradient = start.second.bias.detach(), start.second.bias.grad
    assert gradient is not None
    torch.testing.assert_close(trained.second.bias.detach(), bias - 3e-2 * gradient.sign(), rtol=0, atol=1e-5)
    assert torch.equal(trained.frozen.weight, start.frozen.weight)


def test_each_group_is_clipped_by_itself(tmp_path: Path) -> None:
    """AdamW's moments after one step are (1 - beta) times the clipped gradient and its square."""
    accelerator, model = start_accelerator(), toy.ToyModel(dropout=0.0)
    with accelerator.autocast():
        loss = model(toy.samples(stream=0, step=0, batch_size=8))["total"]
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    norms = {
        group.name: float(torch.stack([gradients[name].norm() for name in group.parameters]).norm()) for group in model.groups()
    }
    clip = (norms["first"] * norms["second"]) ** 0.5  # lies between the two: one group is over it, the other is not
    assert max(norms.values()) > 1.1 * clip
    model.zero_grad()
    train(
        accelerator=accelerator,
        model=model,
        groups=model.groups(),
        batches=toy.batches(batch_size=8),
        settings=replace(toy.settings(steps=1), clip=clip, beta2=0.9),
        work=tmp_path,
    )
    moments = load_file(tmp_path / "checkpoints/step-00000001/optimizer.safetensors")
    for group in model.groups():
        factor = min(1.0, clip / norms[group.name])
        for name in group.parameters:
            clipped = factor * gradients[name]
            torch.testing.assert_close(moments[f"{name}//exp_avg"], 0.1 * clipped, rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(moments[f"{name}//exp_avg_sq"], 0.1 * clipped**2, rtol=1e-4, atol=1e-9)


def test_a_poison_sample_is_named(tmp_path: Path) -> None:
    def poisoned(step: int, part: int, parts: int) -> dict[str, object]:
        batch = toy.batches(batch_size=8).train(step, part, parts)
        return {**batch, "x": batch["x"] / (0 if step == 2 else 1), "keys": ["scene-17"]}

    with pytest.raises(FloatingPointError, match=r"step 3: the loss is not finite .*squared nan.*scene-17"):
        train_here(tmp_path, steps=4, batches=Batches(train=poisoned, validation=toy.batches(batch_size=8).validation))


def test_an_indivisible_batch_and_stray_parameters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 8 does not divide into 1 ranks x accumulation 3"):
        train_here(tmp_path, steps=1, accumulation=3)
    model = toy.ToyModel(dropout=0.0)
    arguments = {
        "accelerator": start_accelerator(),
        "model": model,
        "batches": toy.batches(batch_size=8),
        "settings": toy.settings(steps=1),
        "work": tmp_path,
    }
    with pytest.raises(ValueError, match=r"2 parameters are in no group: second\.bias, second\.weight"):
        train(groups=model.groups()[:1], **arguments)
    frozen = ParameterGroup(name="frozen", rate=1.0, parameters={"frozen.weight": model.frozen.weight})
    with pytest.raises(ValueError, match=r"1 parameters are frozen: frozen\.weight"):
        train(groups=[*model.groups(), frozen], **arguments)
    with pytest.raises(ValueError, match="4 parameters are in two groups"):
        train(groups=[*model.groups(), *model.groups()], **arguments)


def test_curves_drop_lost_steps_and_half_written_rows(tmp_path: Path) -> None:
    curves = Curves(folder=tmp_path, step=0)
    for step in (1, 2, 3):
        curves.log(step=step, metrics={"train/total": step / 10})
    path = tmp_path / "plots/metrics/train/total.tsv"
    with path.open("a") as stream:
        stream.write("4\t0.")  # a kill in the middle of a write
    curves = Curves(folder=tmp_path, step=2)
    curves.log(step=3, metrics={"train/total": 0.5})
    curves.close()
    assert read_curve(path) == ([1, 2, 3], [0.1, 0.2, 0.5])
    Curves(folder=tmp_path, step=0)
    assert not path.exists()


def test_curves_need_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    Repo.init(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    curves = Curves(folder=tmp_path / "curves", step=0)
    curves.log(step=1, metrics={"train/total": 0.5})
    curves.close()
    assert read_curve(tmp_path / "curves/plots/metrics/train/total.tsv") == ([1], [0.5])


def test_curves_are_shown_by_tensorboard_as_well_and_a_resumed_run_shows_no_step_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERCEPTIO_CURVES", "tensorboard")
    folder = Path(".work/toy/cotrain/full-0123/curves")
    for first, last in ((0, 3), (2, 4)):
        curves = Curves(folder=folder, step=first)
        for step in range(first + 1, last + 1):
            curves.log(step=step, metrics={"train/total": 10.0 * first + step})
        curves.close()
    events = EventAccumulator("runs/toy/cotrain/full-0123")
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/total")] == [(1, 1), (2, 2), (3, 23), (4, 24)]
    assert read_curve(folder / "plots/metrics/train/total.tsv") == ([1, 2, 3, 4], [1, 2, 23, 24])
    monkeypatch.setenv("PERCEPTIO_CURVES", "paper")
    with pytest.raises(ValueError, match="PERCEPTIO_CURVES: 'paper'; allowed are tensorboard, wandb"):
        Curves(folder=folder, step=0)


def test_curves_are_shown_by_weights_and_biases_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERCEPTIO_CURVES", "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    start_accelerator()
    curves = Curves(folder=Path(".work/toy/cotrain/full-0123/curves"), step=0)
    curves.log(step=1, metrics={"train/total": 1.0})
    curves.close()
    assert list(tmp_path.glob("wandb/offline-run-*-toy-cotrain-full-0123/*.wandb"))
