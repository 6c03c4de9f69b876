"""Fully sharded data parallel training: every rank keeps a part of each weight, gradient and optimizer state.

FSDP2 (`fully_shard`; the method: arXiv 2304.11277, ZeRO stage 3 of arXiv 1910.02054). The whole weights of a layer exist
while it computes; those outside of the layers (embeddings, head, SAM2, codebook) from the forward to the backward pass. The
numbers are those of the other kinds of training up to the order of sums.

`accelerate` has a plugin for it, which is not used: under bf16 it casts every weight, also those that autocast leaves in
float32 (norms, the codebook's decoder), so that a sharded run would compute something else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer


def shard(model: nn.Module, *, device: torch.device, ranks: int) -> None:
    """Leave of every parameter of `model`, in place, this rank's part on `device`. All ranks must hold the same weights.

    The parameters are new objects under the same names afterwards. In each step every trained parameter needs a gradient on
    all ranks or on none.

    Args:
        model: whole, on whatever device; moved layer by layer.
        device: this rank's.
        ranks: of the process group, at least 2.
    """
    mesh = init_device_mesh(device.type, (ranks,))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """What is gathered one by one: the layers of the language model and the vision tower, as `transformers` marks them."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; of one that is, all ranks must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, on the device of `other` and divided among the ranks as it is."""
    if not isinstance(other, DTensor) or tensor.ndim == 0:
        return tensor.to(other.device)
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
