"""Random state as a pure function of (seed, stream, position).

The generators are reseeded before every micro-batch instead of being saved: a resumed run, or one on another number of
ranks that reaches the same micro-batch, draws the same numbers.
"""

import random

import numpy as np
import torch

from perceptio_core.seeds import derived_seed


def seed_generators(*parts: int | str) -> None:
    """Seed Python's, numpy's and torch's global generators (all devices) from the parts."""
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(seed)
