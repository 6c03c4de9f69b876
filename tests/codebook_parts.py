"""A small quantizer and depth maps for tests of the depth codebook."""

import numpy as np
import torch
import torch.nn.functional as F

from perceptio_core.depth.codebook import Quantizer


def quantizer(*, num_codes: int = 4, dim: int = 3, decay: float = 0.75, seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    made = Quantizer(num_codes=num_codes, dim=dim, decay=decay)
    made.counts.copy_(torch.rand(num_codes) * 5 + 1)
    made.sums.copy_(made.embedding * made.counts[:, None])
    return made


def scenes(count: int = 6, *, height: int = 12, width: int = 10) -> dict[str, np.ndarray]:
    """Maps of smooth random shapes, by key."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.uniform(0.1, 1, (count, 1, 3, 3)).astype(np.float32))
    maps = F.interpolate(coarse, size=(height, width), mode="bilinear")[:, 0].numpy()
    return {f"set/{number}": one for number, one in enumerate(maps)}
