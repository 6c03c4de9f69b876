"""95 % intervals by the percentile bootstrap (Efron 1979), over the unit that a benchmark counts.

Every metric here is a function of per-stratum means of per-unit values: accuracy is a mean of hits, cIoU a quotient of
two means, the MME score a sum of means over subtasks. So a resample is a vector of multinomial counts, and all resamples
of a stratum are one matrix product. Strata (HardBLINK subsets, MME subtasks) are fixed parts of a benchmark and are
resampled each by itself.

Where all units of a stratum are alike (all answers wrong, or all right), resampling finds no spread, and would call a dozen
questions certain. Then the interval is Wilson's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perceptio_core.metrics import wilson

_CHUNK = 1 << 20  # counts drawn at once: bounds the memory, not the result

Floats = NDArray[np.float64]
Statistic = Callable[[list[Floats]], Floats]
"""Takes the resampled means of all strata (each (samples, k)), gives (samples,) values."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are computed; equal settings give equal resamples, so two models are compared on the same ones."""

    samples: int = 2000
    seed: int = 0

    def means(self, strata: Sequence[Floats]) -> list[Floats]:
        """Resampled means: per stratum of shape (n, k) an array of shape (samples, k)."""
        rng = np.random.default_rng(self.seed)
        means = []
        for values_nk in strata:
            n = len(values_nk)
            if n == 0:
                raise ValueError("a stratum without units has no mean; leave it out")
            rows = max(1, _CHUNK // n)
            parts = []
            for start in range(0, self.samples, rows):
                counts_Sn = rng.multinomial(n, np.full(n, 1.0 / n), size=min(rows, self.samples - start))
                # Not a BLAS product: how that adds up may depend on the number of rows, hence on the chunk.
                parts.append(np.einsum("Sn,nk->Sk", counts_Sn, np.asarray(values_nk, dtype=np.float64)) / n)
            means.append(np.concatenate(parts))
        return means

    def interval(self, strata: Sequence[Floats], statistic: Statistic, *, top: float | None = 100.0) -> tuple[float, float]:
        """The 2.5 % and 97.5 % quantiles of `statistic` over the resamples, or Wilson's interval where these are one.

        Args:
            strata: per stratum the values (n, k) of its units.
            statistic: of the resampled means.
            top: the statistic lies between 0 and this; None: it may be negative, and keeps the interval that it has.
        """
        return self.intervals(strata, [statistic], top=top)[0]

    def intervals(
        self,
        strata: Sequence[Floats],
        statistics: Sequence[Statistic],
        *,
        top: float | None = 100.0,
        units: Sequence[float] | None = None,
    ) -> list[tuple[float, float]]:
        """The same of several statistics over the same resamples, which are the costly part.

        Args:
            strata: per stratum the values (n, k) of its units.
            statistics: of the resampled means.
            top: the statistics lie between 0 and this; None: they may be negative, and keep the interval that they have.
            units: per statistic the number of units that it is a share of; None: all, of which the mean of k strata has the
                variance that k^2 / (1/n_1 + .. + 1/n_k) units in one stratum have.
        """
        means = self.means(strata)
        alike = len(strata) ** 2 / sum(1 / len(values) for values in strata)
        bounds = []
        for statistic, n in zip(statistics, units or [alike] * len(statistics), strict=True):
            low, high = (float(bound) for bound in np.quantile(statistic(means), (0.025, 0.975)))
            if top is not None and math.isclose(low, high, abs_tol=1e-9 * top):
                low, high = (bound * top / 100 for bound in wilson(low / top * n, n))
            bounds.append((low, high))
        return bounds
