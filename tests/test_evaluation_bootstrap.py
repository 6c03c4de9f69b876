"""The vectorised bootstrap against a plain one and against theory."""

import numpy as np
import pytest

from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import wilson


def test_interval_of_an_accuracy_has_the_binomial_width() -> None:
    hits = np.r_[np.ones(300), np.zeros(100)][:, None]
    low, high = Bootstrap(samples=20_000, seed=1).interval([hits], lambda means: means[0][:, 0])
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.004)
    assert high == pytest.approx(0.75 + half, abs=0.004)


def test_interval_of_a_quotient_agrees_with_plain_resampling() -> None:
    rng = np.random.default_rng(7)
    unions = rng.integers(50, 4000, 60)
    inter = (unions * rng.random(60)).astype(np.int64)
    values = np.column_stack([inter, unions]).astype(np.float64)
    low, high = Bootstrap(samples=8000).interval([values], lambda means: means[0][:, 0] / means[0][:, 1])
    plain = []
    for _ in range(8000):
        chosen = rng.integers(0, 60, 60)
        plain.append(inter[chosen].sum() / unions[chosen].sum())
    expected = np.quantile(plain, (0.025, 0.975))
    assert (low, high) == pytest.approx(expected, abs=0.01)


def test_strata_are_resampled_each_by_itself() -> None:
    # Each stratum is constant: nothing may vary, although the two differ.
    strata = [np.zeros((5, 1)), np.ones((9, 1))]
    low, high = Bootstrap(samples=50).interval(strata, lambda means: (means[0] + means[1])[:, 0] / 2, top=None)
    assert (low, high) == (0.5, 0.5)


@pytest.mark.parametrize(("hit", "expected"), [(0.0, (0.0, 24.25)), (1.0, (75.75, 100.0))])
def test_all_wrong_and_all_right_have_wilsons_interval(hit: float, expected: tuple[float, float]) -> None:
    hits = np.full((12, 1), hit)
    low, high = Bootstrap(samples=50).interval([hits], lambda means: 100 * means[0][:, 0])
    assert (low, high) == pytest.approx(expected, abs=0.005)  # published: 0 of 12 is 0 to 24.2 %
    # Two such strata count like one of as many units as give their mean the same variance.
    low, high = Bootstrap(samples=50).interval([hits, hits[:4]], lambda means: 200 * (means[0] + means[1])[:, 0], top=400.0)
    assert (low, high) == pytest.approx(tuple(4 * bound for bound in wilson(12 * hit, 12)))
    # A share of some of the units.
    ((low, high),) = Bootstrap(samples=50).intervals([hits], [lambda means: 100 * means[0][:, 0]], units=[5])
    assert (low, high) == pytest.approx(wilson(5 * hit, 5))


def test_seeded_and_independent_of_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((37, 2))
    whole = Bootstrap(samples=100, seed=3).means([values])[0]
    monkeypatch.setattr("perceptio_core.evaluation.statistics.bootstrap._CHUNK", 100)
    np.testing.assert_array_equal(Bootstrap(samples=100, seed=3).means([values])[0], whole)
    assert not np.array_equal(Bootstrap(samples=100, seed=4).means([values])[0], whole)


def test_an_empty_stratum_is_refused() -> None:
    with pytest.raises(ValueError, match="without units"):
        Bootstrap(samples=10).means([np.zeros((0, 1))])
