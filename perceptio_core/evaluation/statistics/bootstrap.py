"""95 % intervals by the percentile bootstrap (Efron 1979), over the unit that a benchmark counts.

Every metric here is a function of per-stratum means of per-unit values: accuracy is a mean of hits, cIoU a quotient of
two means, the MME score a sum of means over subtasks. So a resample is a vector of multinomial counts, and all resamples
of a stratum are one matrix product. Strata (HardBLINK subsets, MME subtasks) are fixed parts of a benchmark and are
resampled each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def interval(self, strata: Sequence[Floats], statistic: Statistic) -> tuple[float, float]:
        """The 2.5 % and 97.5 % quantiles of `statistic` over the resamples.

        Args:
            strata: per stratum the values (n, k) of its units.
            statistic: of the resampled means.
        """
        return self.intervals(strata, [statistic])[0]

    def intervals(self, strata: Sequence[Floats], statistics: Sequence[Statistic]) -> list[tuple[float, float]]:
        """The same of several statistics over the same resamples, which are the costly part."""
        means = self.means(strata)
        bounds = [np.quantile(statistic(means), (0.025, 0.975)) for statistic in statistics]
        return [(float(low), float(high)) for low, high in bounds]
