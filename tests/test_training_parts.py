"""Parts of the training room: schedule, precision, prefetching, checkpoints, seeds, parameters."""

import math
import shutil
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import training_toy as toy
from perceptio_core.schedule import rate_factor
from perceptio_core.seeds import derived_seed
from perceptio_core.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from perceptio_core.training.optimizer import ParameterGroup, build_optimizer, set_rates
from perceptio_core.training.precision import cpu_flags, native_precision
from perceptio_core.training.prefetch import prefetch
from perceptio_core.training.randomness import seed_generators


def test_schedule_by_hand() -> None:
    factors = [rate_factor(step=step, steps=12, warmup=1 / 3, floor=0.2) for step in range(12)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[8] == pytest.approx(0.2 + 0.8 * 0.5)  # half-way down the cosine
    assert factors[10] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.75)))
    later = [rate_factor(step=step, steps=16, warmup=1 / 4, floor=0.2, start=1 / 4) for step in range(16)]
    assert later == pytest.approx([0.0] * 4 + factors), "the same schedule, over the rest of the run"
    assert rate_factor(step=0, steps=1, warmup=0.0, floor=0.0) == 1.0
    with pytest.raises(ValueError, match="step 12 is outside the run of 12 steps"):
        rate_factor(step=12, steps=12, warmup=0.0, floor=0.0)


@pytest.mark.parametrize(
    ("cuda", "flags", "expected"),
    [
        (True, set(), "bf16"),
        (False, {"avx2"}, "no"),
        (False, {"avx512f", "avx512bw"}, "no"),  # AVX-512 alone emulates bf16
        (False, {"avx512_bf16"}, "bf16"),
        (False, {"amx_bf16", "amx_tile"}, "bf16"),
    ],
)
def test_bf16_only_where_it_is_native(cuda: bool, flags: set[str], expected: str) -> None:
    assert native_precision(cuda_bf16=cuda, flags=frozenset(flags)) == expected


def test_cpu_flags(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\n")
    assert cpu_flags(cpuinfo=tmp_path / "cpuinfo") == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(cpuinfo=tmp_path / "absent") == frozenset()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_keeps_the_order(workers: int) -> None:
    def load(position: int) -> int:
        time.sleep(0.002 * (position % 3))  # later batches finish first
        return position * 10

    assert list(prefetch(load=load, positions=range(4, 20), workers=workers)) == [p * 10 for p in range(4, 20)]


def test_prefetch_raises_in_turn_and_stops_its_threads() -> None:
    def load(position: int) -> int:
        if position == 2:
            raise ValueError("bad batch 2")
        return position

    before = set(threading.enumerate())
    stream = prefetch(load=load, positions=range(100), workers=2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="bad batch 2"):
        next(stream)
    assert set(threading.enumerate()) <= before


def test_prefetch_runs_ahead() -> None:
    loaded: list[int] = []
    stream = prefetch(load=lambda p: loaded.append(p), positions=range(100), workers=1, ahead=2)
    next(stream)
    time.sleep(0.05)
    assert loaded == [0, 1, 2]


def optimized(*, steps: int) -> tuple[toy.ToyModel, torch.optim.Optimizer]:
    model = toy.ToyModel(dropout=0.0)
    optimizer = build_optimizer(groups=model.groups(), weight_decay=0.05, beta2=0.999)
    for step in range(steps):
        model(toy.samples(stream=0, step=step, batch_size=4))["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def trainable(model: toy.ToyModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for group in model.groups() for name, parameter in group.parameters.items()}


def test_checkpoint_round_trip_and_rotation(tmp_path: Path) -> None:
    model, optimizer = optimized(steps=3)
    for step in (1, 2, 3):
        now = Progress(step=step, seconds=1.5 * step)
        save_checkpoint(folder=tmp_path, parameters=trainable(model), optimizer=optimizer, progress=now)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    (tmp_path / ".step-00000004.writing").mkdir()  # what a kill leaves behind is not a checkpoint

    fresh, fresh_optimizer = optimized(steps=0)
    progress = load_checkpoint(folder=tmp_path, parameters=trainable(fresh), optimizer=fresh_optimizer)
    assert progress == Progress(step=3, seconds=4.5)
    for (name, expected), actual in zip(trainable(model).items(), trainable(fresh).values(), strict=True):
        assert torch.equal(expected, actual), name
        old, new = optimizer.state[expected], fresh_optimizer.state[actual]
        assert old.keys() == new.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(old[slot], new[slot]) for slot in old)
    assert load_checkpoint(folder=tmp_path / "none", parameters={}, optimizer=fresh_optimizer) is None


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = optimized(steps=1)
    progress = Progress(step=1, seconds=0.0)
    save_checkpoint(folder=tmp_path, parameters=trainable(model), optimizer=optimizer, progress=progress)
    fewer = dict(list(trainable(model).items())[:-1])
    with pytest.raises(ValueError, match=r"1 unexpected: second\.bias$"):
        load_checkpoint(folder=tmp_path, parameters=fewer, optimizer=optimizer)
    other = trainable(model) | {"second.bias": torch.nn.Parameter(torch.zeros(2))}
    with pytest.raises(ValueError, match=r"1 of another shape: second\.bias \(1,\) instead of \(2,\)"):
        load_checkpoint(folder=tmp_path, parameters=other, optimizer=optimizer)
    state = tmp_path / "step-00000001/state.json"
    state.write_text(state.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ValueError, match=r"state\.json: schema 99, this version reads 1"):
        load_checkpoint(folder=tmp_path, parameters=trainable(model), optimizer=optimizer)
    shutil.rmtree(tmp_path)


def test_rates_and_decay_by_group() -> None:
    _, optimizer = optimized(steps=0)
    set_rates(optimizer=optimizer, factor=lambda start: 0.5 + start)
    seen = {(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups}
    assert seen == {(5e-3, 0.05, 1), (5e-3, 0.0, 1), (1.5e-2, 0.05, 1), (1.5e-2, 0.0, 1)}


def test_a_group_with_a_later_start_stands_still_until_then() -> None:
    early, late = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [
        ParameterGroup(name="early", rate=1.0, parameters={"early": early}),
        ParameterGroup(name="late", rate=2.0, start=0.5, parameters={"late": late}),
    ]
    optimizer = build_optimizer(groups=groups, weight_decay=0.0, beta2=0.999)
    for step, rates in ((3, [rate_factor(step=3, steps=8, warmup=0.0, floor=0.1), 0.0]), (4, [0.55, 2.0])):
        set_rates(optimizer=optimizer, factor=partial(rate_factor, step=step, steps=8, warmup=0.0, floor=0.1))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


def test_seeds_depend_on_every_part_alone() -> None:
    assert derived_seed(1, "train", 2) == derived_seed(1, "train", 2)
    seeds = {derived_seed(a, b, c) for a in (1, 2) for b in ("train", "validation") for c in (0, 1, 10)}
    assert len(seeds) == 12
    assert derived_seed(1, 23) != derived_seed(12, 3)
    assert derived_seed("a/b", "c") != derived_seed("a", "b/c"), "names of pictures have slashes"
    seed_generators(3, "train", 5)
    first = torch.rand(3)
    torch.rand(100)
    seed_generators(3, "train", 5)
    assert torch.equal(torch.rand(3), first)
