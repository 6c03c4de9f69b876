"""The depth codebook: a VQ-VAE that writes a depth map as a grid of discrete codes and reads it back.

Geometry, losses and quantizer are AURORA's (arXiv 2412.03548): stride-2 convolutions 1 -> 16 -> ... -> 256, two residual
blocks, 1 x 1 to the code dimension, a decoder of the same kind, and an exponential-moving-average codebook with a
straight-through gradient. The decoder that mirrors the encoder is ours; AURORA's own layers are there for its published
weights. Ours, where AURORA has faults: flat maps are handled, statistics are summed over ranks, the codebook starts from
encoded data, dead codes restart, and codes are ordered by the nearness that they decode to.

Shape suffixes: B maps, R resolution, N = g * g codes a map (row-major), K codes, D code dimension.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from perceptio_core.weights import load_exactly, read_safetensors, save_tensors

EPSILON = 1e-5  # of the Laplace smoothing of code counts (AURORA)
KMEANS_ROUNDS = 10
LEVELS = np.float32(255)  # of inverse depth between a map's farthest and nearest pixel (AURORA)


class ResidualBlock(nn.Module):
    """3 x 3, 3 x 3, 1 x 1 convolutions with ReLU between, and a skip (AURORA)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape out as in."""
        return x_BCHW + self.layers(x_BCHW)


class Quantizer(nn.Module):
    """K code vectors that follow the exponential moving average of what is assigned to them.

    Buffers, not parameters: `embedding` (K, D), `counts` (K) and `sums` (K, D), the moving averages behind it.
    """

    embedding: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, *, num_codes: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("embedding", torch.randn(num_codes, dim))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", self.embedding.clone())

    def nearest(self, vectors_PD: Tensor) -> Tensor:
        """Index of the nearest code by Euclidean distance: int64, P."""
        distance_PK = self.embedding.square().sum(1) - 2 * vectors_PD @ self.embedding.T
        return distance_PK.argmin(1)

    @torch.no_grad()
    def start(self, vectors_PD: Tensor) -> None:
        """Begin at the k-means centres of encoded data (a few rounds, seeded by torch's generator; rank 0 decides)."""
        draws = torch.randperm(len(vectors_PD), device=vectors_PD.device)
        chosen = draws[torch.arange(len(self.embedding), device=draws.device) % len(draws)]
        self.embedding.copy_(vectors_PD[chosen])
        for _ in range(KMEANS_ROUNDS):
            counts, sums = self._statistics(vectors_PD, self.nearest(vectors_PD))
            used = counts > 0
            self.embedding[used] = sums[used] / counts[used, None]
        if dist.is_initialized():
            dist.broadcast(self.embedding, 0)
        self.counts.fill_(1.0)
        self.sums.copy_(self.embedding)

    @torch.no_grad()
    def update(self, vectors_PD: Tensor, codes_P: Tensor) -> None:
        """One step of the moving averages, with the statistics of all ranks."""
        counts, sums = self._statistics(vectors_PD, codes_P)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + EPSILON) / (total + len(self.counts) * EPSILON) * total
        self.embedding.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def restart_dead(self, vectors_PD: Tensor, *, share: float) -> int:
        """Move codes that serve less than `share` of their fair part to random encoded vectors; returns how many."""
        fair = self.counts.sum() / len(self.counts)
        dead = torch.nonzero(self.counts < share * fair).flatten()
        if len(dead) == 0:
            return 0
        draws = torch.randint(len(vectors_PD), (len(dead),), device=vectors_PD.device)
        fresh = vectors_PD[draws].clone()
        if dist.is_initialized():
            dist.broadcast(fresh, 0)
        self.embedding[dead] = fresh
        self.counts[dead] = fair
        self.sums[dead] = fresh * fair
        return len(dead)

    def _statistics(self, vectors_PD: Tensor, codes_P: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(codes_P, minlength=len(self.embedding)).to(vectors_PD.dtype)
        return counts, torch.zeros_like(self.embedding).index_add_(0, codes_P, vectors_PD)


class DepthCodebook(nn.Module):
    """VQ-VAE on normalised depth maps.

    Args:
        num_codes: K.
        resolution: R, side of the maps in pixels; a multiple of 2 ** len(widths).
        widths: channels after each stride-2 convolution; the grid has resolution / 2 ** len(widths) codes a side.
        dim: D.
        decay: of the moving averages.
        decoder: "mirrored", or "aurora" for AURORA's layers.
    """

    def __init__(
        self,
        *,
        num_codes: int = 128,
        resolution: int = 320,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        dim: int = 512,
        decay: float = 0.99,
        decoder: Literal["mirrored", "aurora"] = "mirrored",
    ) -> None:
        super().__init__()
        stride = 2 ** len(widths)
        if resolution % stride:
            raise ValueError(f"resolution {resolution} must be a multiple of the stride {stride} of {len(widths)} layers")
        self.config: dict[str, Any] = {
            "num_codes": num_codes,
            "resolution": resolution,
            "widths": list(widths),
            "dim": dim,
            "decay": decay,
            "decoder": decoder,
        }
        self.num_codes, self.resolution, self.grid = num_codes, resolution, resolution // stride
        down: list[nn.Module] = []
        for before, after in zip((1, *widths[:-1]), widths, strict=True):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*down, ResidualBlock(widths[-1]), ResidualBlock(widths[-1]), nn.Conv2d(widths[-1], dim, 1))
        up: list[nn.Module] = []
        if decoder == "mirrored":
            for before, after in zip(widths[::-1], (*widths[-2::-1], 1), strict=True):
                up += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
            self.decoder = nn.Sequential(nn.Conv2d(dim, widths[-1], 1), *(ResidualBlock(widths[-1]) for _ in range(2)), *up)
        elif decoder == "aurora":
            for before, after in zip((widths[-1], *widths[:0:-1]), widths[::-1], strict=True):
                up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
            middle = nn.Conv2d(dim, widths[-1], 1), nn.ReLU(), *(ResidualBlock(widths[-1]) for _ in range(2))
            self.decoder = nn.Sequential(*middle, *up, nn.Conv2d(widths[0], 1, 1))
        else:
            raise ValueError(f"decoder {decoder!r}: allowed are 'mirrored' and 'aurora'")
        self.quantizer = Quantizer(num_codes=num_codes, dim=dim, decay=decay)

    @property
    def embedding(self) -> Tensor:
        """The code vectors (K, D)."""
        return self.quantizer.embedding

    def resized(self, inverse_depth_HW: NDArray[np.floating]) -> NDArray[np.float32]:
        """The map on a square (R, R), in its own unit: the pixels under the square's centres (AURORA: Pillow's nearest)."""
        image = Image.fromarray(np.ascontiguousarray(inverse_depth_HW, np.float32))
        return np.asarray(image.resize((self.resolution, self.resolution), Image.Resampling.NEAREST))

    def normalise(self, inverse_depth_HW: NDArray[np.floating]) -> Tensor:
        """A map of inverse depth (any unit, near = high) as the codebook takes it: (1, R, R) float32 in [-1, 1].

        As AURORA's codebook sees maps, which Depth Anything's own command writes as 8-bit pictures: the whole map's minimum and
        maximum become 0 and `LEVELS`, what is between is rounded down, and of the square that remains 0 and `LEVELS` become -1
        and 1. A flat map becomes zeros (ours).

        Raises:
            ValueError: the map holds values that are not finite.
        """
        low, high = np.float32(inverse_depth_HW.min()), np.float32(inverse_depth_HW.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("the depth map holds values that are not finite")
        if high <= low:
            return torch.zeros(1, self.resolution, self.resolution)
        levels_RR = np.floor((self.resized(inverse_depth_HW) - low) / (high - low) * LEVELS)
        return torch.from_numpy(levels_RR / LEVELS * 2 - 1)[None]

    def latents(self, x_B1RR: Tensor) -> Tensor:
        """Encoder output before quantization: (B, N, D)."""
        return self.encoder(x_B1RR).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def encode(self, x_B1RR: Tensor) -> Tensor:
        """Codes of normalised maps: int64 (B, N) in [0, K), row-major."""
        latents_BND = self.latents(x_B1RR)
        return self.quantizer.nearest(latents_BND.flatten(0, 1)).view(latents_BND.shape[:2])

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Maps (B, 1, R, R) that the codes stand for, about [-1, 1]."""
        return self.decode_embeddings(self.embedding[codes_BN])

    def decode_embeddings(self, vectors_BND: Tensor) -> Tensor:
        """Maps (B, 1, R, R) of code vectors or mixtures of them; differentiable in the vectors."""
        return self.decoder(vectors_BND.transpose(1, 2).unflatten(2, (self.grid, self.grid)))

    @torch.no_grad()
    def order_codes(self) -> None:
        """Number the codes by the mean of the map that each decodes to alone, far to near (ours)."""
        codes = torch.arange(self.num_codes, device=self.embedding.device)
        order = self.decode(codes[:, None].expand(-1, self.grid**2)).mean((1, 2, 3)).argsort()
        for buffer in (self.quantizer.embedding, self.quantizer.counts, self.quantizer.sums):
            buffer.copy_(buffer[order].clone())

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        save_tensors({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Read what `save_pretrained` wrote, in evaluation mode.

        Raises:
            ValueError: the weights are missing, or not exactly those of the configuration; every key is listed.
        """
        model = cls(**json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))
        weights = Path(folder) / "model.safetensors"
        load_exactly(model, read_safetensors(weights), source=weights)
        return model.eval()
