"""The same auto-encoder with vector-quantize-pytorch between its halves: same maps, batches, optimizer and schedule.

Its quantizer has what its README recommends against unused codes: k-means at the start, and dead codes restarted.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from maps import Through, main
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.codebook_training import COMMITMENT, FLOOR, WARMUP
from perceptio_core.depth.store import DepthStore
from perceptio_core.params.depth_codebook import DepthCodebookParams
from perceptio_core.schedule import rate_factor


def _train(params: DepthCodebookParams, store: DepthStore, keys: list[str], _work: Path) -> tuple[DepthCodebook, Through]:
    torch.manual_seed(params.seed)
    codebook = DepthCodebook(
        num_codes=params.num_codes, resolution=params.resolution, widths=params.widths, dim=params.dim, decay=params.decay
    )
    quantizer = VectorQuantize(
        dim=params.dim,
        codebook_size=params.num_codes,
        decay=params.decay,
        commitment_weight=COMMITMENT,
        kmeans_init=True,
        threshold_ema_dead_code=2,
    )
    optimizer = torch.optim.Adam(codebook.parameters(), lr=params.learning_rate)

    def batch(number: int) -> Tensor:
        draw = np.random.default_rng((params.seed, number)).choice(len(keys), params.batch_size)
        return torch.stack([codebook.normalise(store[keys[i]]) for i in draw])

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(batch, 0)
        for step in range(params.steps):
            maps_B1RR = coming.result()
            coming = reader.submit(batch, min(step + 1, params.steps - 1))
            for group in optimizer.param_groups:
                factor = rate_factor(step=step, steps=params.steps, warmup=WARMUP / params.steps, floor=FLOOR)
                group["lr"] = params.learning_rate * factor
            quantized_BND, _, commitment = quantizer(codebook.latents(maps_B1RR))
            loss = F.mse_loss(codebook.decode_embeddings(quantized_BND), maps_B1RR) + commitment.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    quantizer.eval()

    def through(maps_B1RR: Tensor) -> tuple[Tensor, Tensor]:
        quantized_BND, codes_BN, _ = quantizer(codebook.latents(maps_B1RR))
        return codes_BN, codebook.decode_embeddings(quantized_BND)

    return codebook.eval(), through


main(_train)
