"""Random state as a pure function of (seed, stream, position).

The generators are reseeded before every micro-batch instead of being saved: a resumed run, or one on another number of
ranks that reaches the same micro-batch, draws the same numbers.
"""

import hashlib
import random

import numpy as np
import torch


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts; distinct parts give unrelated seeds (SHA-256 of their text)."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_generators(*parts: int | str) -> None:
    """Seed Python's, numpy's and torch's global generators (all devices) from the parts."""
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global generator)
    torch.manual_seed(seed)
