"""Perceptio at full size, put together without memory for a single weight."""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from transformers import InternVLForConditionalGeneration

from benchmarks.architectures import Architecture, processor_of
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.model.adapters import add_adapters
from perceptio_core.model.assembly import join
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.params.profile import Profile
from perceptio_core.segmentation.sam2 import build_sam2, official_config

Group = dict[str, torch.nn.Parameter]

SAM2_1_LARGE = 224_446_642
"""Parameters of SAM 2.1 hiera-L: published as 224.4 M (README of SAM 2), counted by others to the last one."""


def assemble_on_meta(
    architecture: Architecture, profile: Profile
) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor, dict[str, Group]]:
    """What the stage `cotrain` makes of a profile before the first step, by its own code; only the loaders of files are not.

    Every parameter lies on the meta device, InternVL's in bf16 as published.
    """
    params, book = profile.cotrain, profile.depth_codebook
    sam2 = official_config("sam2.1_hiera_l")
    with torch.device("meta"):
        vlm = InternVLForConditionalGeneration(architecture.config()).to(torch.bfloat16)
    # Not `torch.device("meta")`: the constructor of SAM2's encoder reads numbers off a tensor.
    with init_empty_weights():
        model, processor = join(
            vlm=vlm,
            processor=processor_of(architecture.tokens),
            sam=build_sam2(sam2),
            sam2_config=sam2,
            codebook=DepthCodebook(num_codes=book.num_codes, resolution=book.resolution, widths=book.widths, dim=book.dim),
            order=[span for span in params.order if getattr(params.spans, span)],
            loss_weights=params.loss_weights.model_dump(),
            max_tiles=params.max_tiles,
            seed=params.seed,
        )
        groups = add_adapters(
            model,
            rank=params.lora.r,
            alpha=params.lora.alpha,
            dropout=params.lora.dropout,
            train_vision_tower=params.train_vision_tower,
        )
    return model, processor, groups
