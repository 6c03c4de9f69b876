"""Floating-point operations of a training step, by a closed formula: what the method needs, not what a program happens to do.

A multiplication with its addition is two operations. Counted are matrix products and convolutions:

- a frozen matrix of W numbers costs 2 W a token forwards and 2 W backwards (the gradient of its input), a trained one 2 W more;
- causal attention over a sample of t tokens costs 2 t^2 a channel forwards (half of scores and sums), twice that backwards;
- the output head is applied at the supervised tokens only; the rows that train in it are too few to count;
- the frozen vision tower costs its forward pass; attention in it sees all patches of a tile;
- SAM2's encoder costs its forward pass and its mask decoder three times that, both as torch's own counter finds them.

Not counted: what gradient checkpointing computes a second time, the VQ-VAE's decoder, norms, activations, the optimizer. So
a share of the peak by this count is what is called model FLOP utilisation (Chowdhery et al., arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.training.memory_estimate import StepShape

PEAK = 989e12
"""Dense bf16 operations a second of an H100 (SXM) and an H200, by their data sheets."""


def step_flops(model: PerceptioForConditionalGeneration, batch: PerceptioBatch) -> dict[str, float]:
    """Operations of the forward and backward pass of one micro-batch, by part.

    Args:
        model: with its adapters, on the device of the batch.
        batch: the micro-batch.
    """
    vlm, shape = model.vlm.model, StepShape.of(batch)
    config, layers = vlm.config.text_config, vlm.language_model.layers
    tower, vision = vlm.vision_tower, vlm.config.vision_config
    channels = config.num_attention_heads * layers[0].self_attn.head_dim
    patches = (vision.image_size[0] // vision.patch_size[0]) * (vision.image_size[1] // vision.patch_size[1]) + 1
    learns = any(parameter.requires_grad for parameter in tower.parameters())
    projector = vlm.multi_modal_projector
    first = projector.linear_1.weight.numel()  # before a frozen tower, nothing wants the gradient of its input
    parts = {
        "language model": float(shape.tokens * _matrices(layers)),
        "attention": 6.0 * len(layers) * channels * sum(length**2 for length in batch.lengths),
        "output head": 4.0 * shape.supervised * model.vlm.get_output_embeddings().weight.numel(),
        "vision tower": (3 if learns else 1)
        * shape.tiles
        * patches
        * (2.0 * _products(tower) + 4.0 * _channels(tower) * patches),
        "projector": float(shape.tiles * vlm.config.image_seq_length * (_matrices(projector) - (0 if learns else 2 * first))),
    }
    if model.segments:
        parts |= _segmentation(model, batch)
    return parts


def _matrices(module: nn.Module) -> int:
    """Operations a token of a module's matrices, forwards and backwards."""
    return sum((6 if p.requires_grad else 4) * p.numel() for p in module.parameters() if p.ndim == 2)


def _products(tower: nn.Module) -> int:
    """Numbers in the matrices and kernels of the vision tower."""
    return sum(m.weight.numel() for m in tower.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def _channels(tower: nn.Module) -> int:
    """Channels of all attention layers of the vision tower together."""
    return sum(int(module.out_features) for name, module in tower.named_modules() if name.endswith(".attention.q_proj"))


@torch.no_grad()
def _segmentation(model: PerceptioForConditionalGeneration, batch: PerceptioBatch) -> dict[str, float]:
    width = model.vlm.config.text_config.hidden_size
    states = torch.zeros(len(batch.masks_M), width, device=batch.input_ids_T.device)
    pixels = batch.sam_pixels_SCHW
    if len(pixels) == 0:
        return {}
    with FlopCounterMode(display=False) as encoder:
        features = model.bridge.image_features(pixels)
    with FlopCounterMode(display=False) as decoder:
        model.bridge.masks(features, image_index_M=batch.mask_image_M, hidden_MD=states)
    return {
        "SAM2's encoder": float(encoder.get_total_flops()),
        "prompt and mask decoder": 3.0 * decoder.get_total_flops(),
    }
