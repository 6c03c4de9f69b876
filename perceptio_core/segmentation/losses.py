"""Mask losses on sampled points: sigmoid cross-entropy and Dice.

Source: point sampling PointRend (arXiv 1912.08193), as in Mask2Former; the numbers are Sa2VA's (arXiv 2501.04001): 12,544
points a mask, three times as many candidates, three quarters of the points where the prediction is least certain, Dice
with epsilon 1. Sa2VA weighs the cross-entropy 2.0 and Dice 0.5; the weights are the caller's. Ours: the target is read at
its own resolution, and a point near the image border takes the border's value (the same as resizing the logits), not a
blend with zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MaskLosses:
    """Scalars, means over the masks: `ce` in nats a point (0 is perfect), `dice` in 0..1 (0 is perfect)."""

    ce: Tensor
    dice: Tensor


def mask_losses(
    logits_Mhw: Tensor,
    targets_M: Sequence[Tensor],
    *,
    num_points: int = 12544,
    oversample: float = 3.0,
    importance: float = 0.75,
    eps: float = 1.0,
    generator: torch.Generator | None = None,
) -> MaskLosses:
    """Cross-entropy and Dice of M predicted masks on sampled points.

    Args:
        logits_Mhw: mask logits, one a target.
        targets_M: M masks (H, W) with values in 0..1 (bool or number), each at any resolution, also different ones.
        num_points: points sampled a mask.
        oversample: candidates a point among which the least certain ones are kept, at least 1.
        importance: share of the points that are such, in 0..1; the others are uniform.
        eps: keeps Dice defined, and 0 for an empty mask predicted empty.
        generator: source of the points; the global one of torch if absent.

    Returns:
        Zeros with a gradient of zero if M is 0, so that a rank without masks still touches the same parameters.

    Raises:
        ValueError: as many targets as logits are needed, and sampling numbers in their ranges.
    """
    if len(targets_M) != len(logits_Mhw):
        raise ValueError(f"{len(logits_Mhw)} predicted masks but {len(targets_M)} targets")
    if len(logits_Mhw) == 0:
        nothing = logits_Mhw.float().sum()
        return MaskLosses(ce=nothing, dice=nothing)
    logits_Mhw = logits_Mhw.float()
    points_MP2 = uncertain_points(
        logits_Mhw.detach(), num_points=num_points, oversample=oversample, importance=importance, generator=generator
    )
    logits_MP = sample_points(logits_Mhw, points_MP2)
    by_size: dict[torch.Size, list[int]] = {}
    for number, target in enumerate(targets_M):
        by_size.setdefault(target.shape, []).append(number)
    targets_MP = torch.empty_like(logits_MP)
    for numbers in by_size.values():  # masks of one size at once, whatever images they belong to
        maps = torch.stack([targets_M[number] for number in numbers]).to(logits_MP)
        targets_MP[numbers] = sample_points(maps, points_MP2[numbers])
    return MaskLosses(
        ce=F.binary_cross_entropy_with_logits(logits_MP, targets_MP), dice=dice(logits_MP, targets_MP, eps=eps).mean()
    )


def dice(logits_MP: Tensor, targets_MP: Tensor, *, eps: float) -> Tensor:
    """Dice loss of each mask, (M,): 1 - (2 sum(p t) + eps) / (sum p + sum t + eps), with p the sigmoid of the logits."""
    probabilities = logits_MP.sigmoid()
    overlap = 2 * (probabilities * targets_MP).sum(-1)
    return 1 - (overlap + eps) / (probabilities.sum(-1) + targets_MP.sum(-1) + eps)


def sample_points(maps_Mhw: Tensor, points_MP2: Tensor) -> Tensor:
    """Values (M, P) of the maps at points (x, y) in 0..1, bilinear between pixel centres, constant beyond the outermost ones.

    The centre of pixel (row, column) lies at ((column + 0.5) / w, (row + 0.5) / h).
    """
    grid = 2 * points_MP2[:, :, None] - 1
    values = F.grid_sample(maps_Mhw[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values[:, 0, :, 0]


@torch.no_grad()
def uncertain_points(
    logits_Mhw: Tensor,
    *,
    num_points: int,
    oversample: float,
    importance: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Points (M, P, 2) in 0..1: `importance` of them the candidates whose logits are nearest to 0, the others uniform."""
    if num_points < 1 or oversample < 1 or not 0 <= importance <= 1:
        raise ValueError(
            f"num_points {num_points}, oversample {oversample}, importance {importance}: "
            "allowed are at least 1, at least 1 and 0..1"
        )
    masks, doubtful = len(logits_Mhw), round(importance * num_points)
    device = logits_Mhw.device if generator is None else generator.device
    # One draw for both kinds, so that the generator moves by the same amount whatever the logits are.
    count = round(oversample * num_points)
    drawn = torch.rand(masks, count + num_points - doubtful, 2, generator=generator, device=device).to(logits_Mhw)
    candidates, uniform = drawn[:, :count], drawn[:, count:]
    certainty = sample_points(logits_Mhw, candidates).abs()
    nearest = certainty.topk(doubtful, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, nearest[..., None].expand(-1, -1, 2)), uniform], dim=1)
