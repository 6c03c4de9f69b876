"""The mixture: exact shares, every sample once an epoch, dealt evenly to any number of ranks."""

import re
from collections import Counter

import numpy as np
import pytest

from perceptio_core.data.loading.balance import deal
from perceptio_core.data.loading.mixture import MixtureSampler, require_samples


def drawn_by(sampler, step, batch_size):
    return [draw.sample for draw in sampler.draws(step, batch_size)]


TASKS = {"referring": np.arange(0, 70), "marker": np.arange(70, 100), "conversation": np.arange(100, 103)}


def test_shares_are_exact_in_every_thousand_draws():
    sampler = MixtureSampler(tasks=TASKS, weights={"referring": 3, "marker": 1, "conversation": 0}, seed=0)
    for step in range(3):
        drawn = drawn_by(sampler, step, 1000)
        assert sum(index < 70 for index in drawn) == pytest.approx(750, abs=1)
        assert max(drawn) < 100


def test_every_sample_of_a_task_once_an_epoch_and_each_epoch_in_another_order():
    sampler = MixtureSampler(tasks=TASKS, weights={"marker": 1.0}, seed=0)
    drawn = drawn_by(sampler, 0, 90)
    epochs = [drawn[start : start + 30] for start in (0, 30, 60)]
    assert all(sorted(epoch) == list(range(70, 100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    mixed = MixtureSampler(tasks=TASKS, weights={"marker": 0.3, "referring": 0.7}, seed=5)
    counts = Counter(index for step in range(100) for index in drawn_by(mixed, step, 40))  # 4000 draws over block borders
    assert {counts[index] for index in range(70, 100)} == {40}
    assert {counts[index] for index in range(70)} == {40}


def test_what_was_drawn_is_counted():
    sampler = MixtureSampler(tasks=TASKS, weights={"referring": 2, "marker": 1, "conversation": 0}, seed=3)
    drawn = sampler.drawn(103, 24)  # 2472 draws: two blocks and a part of a third
    seen = Counter(index < 70 for step in range(103) for index in drawn_by(sampler, step, 24))
    assert {task: row.draws for task, row in drawn.items()} == {"referring": seen[True], "marker": seen[False]}
    assert drawn["marker"].epochs == pytest.approx(seen[False] / 30)
    assert {task: row.wanted for task, row in drawn.items()} == pytest.approx({"referring": 2 / 3, "marker": 1 / 3})
    assert drawn["marker"].share == seen[False] / 2472 == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 24])
def test_parts_of_a_step_have_alike_numbers_of_each_task_and_alike_lengths(parts):
    sampler = MixtureSampler(tasks=TASKS, weights={"referring": 2, "marker": 1, "conversation": 1}, seed=9)
    lengths = np.random.default_rng(0).integers(500, 4000, 103)
    spreads = []
    for step in range(50):
        whole = drawn_by(sampler, step, 24)
        dealt = deal(whole, lengths[whole].tolist(), parts=parts)
        assert sorted(index for part in dealt for index in part) == sorted(whole)
        for task, members in TASKS.items():
            counts = [sum(index in members for index in part) for part in dealt]
            assert max(counts) - min(counts) <= 2, task
        loads = [int(lengths[part].sum()) for part in dealt]
        assert loads == sorted(loads, reverse=True)
        as_they_come = [int(lengths[whole[part::parts]].sum()) for part in range(parts)]
        spreads.append((loads[0] - loads[-1], max(as_they_come) - min(as_they_come)))
    ours, theirs = np.mean(spreads, axis=0)
    assert ours == theirs if parts in (1, 24) else ours < theirs / 2


def test_the_longest_sample_of_a_round_goes_to_the_part_with_least():
    # Rounds: (9, 1), (5, 4), (2,). Loads after each: 9 | 1; 13 | 6; 13 | 8.
    assert deal([10, 11, 12, 13, 14], [9, 1, 5, 4, 2], parts=2) == [[10, 13], [11, 12, 14]]
    assert deal([1, 2], [3, 3], parts=3) == [[1], [2], []]


def test_a_step_depends_on_seed_and_step_alone():
    def sampler(seed):
        return MixtureSampler(tasks=TASKS, weights={"marker": 1, "referring": 2}, seed=seed)

    walked = sampler(1)
    for step in range(40):
        last = walked.draws(step, 32)
    assert sampler(1).draws(39, 32) == last
    assert sampler(2).draws(39, 32) != last
    assert sorted(sampler(1).draws(0, 64)) == sorted(sampler(1).draws(0, 32) + sampler(1).draws(1, 32))


def test_a_task_of_the_mixture_without_a_sample_is_refused_by_its_key():
    counts = {"conversation": 120, "depth_map": 40}
    require_samples({"conversation": 0.7, "depth_map": 0.3, "referring": 0.0, "marker": 0.0, "reading": 0.0}, counts)
    said = (
        "cotrain.mixture.referring: weight 0.5, but the training data give this task no sample: none of sources.datasets has "
        "expressions with masks. Set cotrain.mixture.referring to 0, or add such data. "
        "Samples by task: conversation 120, depth_map 40"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        require_samples({"conversation": 0.5, "referring": 0.5}, counts)
    with pytest.raises(ValueError, match=r"cotrain\.mixture\.reading: weight 1, .* has marked pictures with depth"):
        require_samples({"reading": 1.0}, counts)
    require_samples({"reading": 1.0}, {"marker": 3})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"marker": 0.0}, "at least one task"),
        ({"marker": -1.0}, "marker is -1"),
        ({"depth_map": 1.0}, "depth_map has weight 1.0 but no samples"),
        ({"marker": float("nan")}, "marker is nan"),
    ],
)
def test_impossible_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        MixtureSampler(tasks=TASKS, weights=weights, seed=0)
