"""Seeds and random streams as a pure function of what they are for: the one scheme of all stages.

The rendered scenes and the bundled models have numpy's own, ``default_rng((seed, n))``: their published bytes hang on it.
"""

import hashlib

import numpy as np


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts; distinct parts give unrelated seeds (SHA-256 of their text)."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*parts: int | str) -> np.random.Generator:
    """A random stream of its own for each purpose and name, the same in whichever process it is asked for."""
    return np.random.default_rng(derived_seed(*parts))
