"""SAM2 from other files -> the folder that `perceptio_core.segmentation.sam2.load_sam2` reads.

Source: the checkpoints of SAM 2 and 2.1 (arXiv 2408.00714) in their own layout (`sam2_hiera_large.pt` and the like), and in
that of `transformers`' `Sam2Model` and `Sam2VideoModel`, of which the parts for still images are taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import Sam2Config

from perceptio_core.convert.checkpoint_files import Section, new_folder, read_weights
from perceptio_core.convert.rules import Rule, renames, translate
from perceptio_core.segmentation.sam2 import OFFICIAL, build_sam2, official_config, save_sam2, still_image_config
from perceptio_core.weights import refuse, shapes

_ENCODER, _PROMPT, _DECODER = "image_encoder.trunk.", "sam_prompt_encoder.", "sam_mask_decoder."


def _mlp(source: str, target: str, *, inner: bool) -> dict[str, str]:
    """`transformers` calls the first and the last layer of a perceptron by name and numbers those between."""
    if not inner:
        return {f"{source}.proj_in.{{p}}": f"{target}.layers.0.{{p}}", f"{source}.proj_out.{{p}}": f"{target}.layers.1.{{p}}"}
    ends = {f"{source}.proj_in.{{p}}": f"{target}.layers.0.{{p}}", f"{source}.proj_out.{{p}}": f"{target}.layers.2.{{p}}"}
    return {**ends, f"{source}.layers.0.{{p}}": f"{target}.layers.1.{{p}}"}


_RULES = (
    *renames(
        {
            "no_memory_embedding": "no_mem_embed",
            "vision_encoder.backbone.pos_embed": f"{_ENCODER}pos_embed",
            "vision_encoder.backbone.pos_embed_window": f"{_ENCODER}pos_embed_window",
            "vision_encoder.backbone.patch_embed.projection.{p}": f"{_ENCODER}patch_embed.proj.{{p}}",
            "vision_encoder.backbone.blocks.{n}.layer_norm{m}.{p}": f"{_ENCODER}blocks.{{n}}.norm{{m}}.{{p}}",
            "vision_encoder.backbone.blocks.{n}.attn.{rest}": f"{_ENCODER}blocks.{{n}}.attn.{{rest}}",
            "vision_encoder.backbone.blocks.{n}.proj.{p}": f"{_ENCODER}blocks.{{n}}.proj.{{p}}",
            **_mlp("vision_encoder.backbone.blocks.{n}.mlp", f"{_ENCODER}blocks.{{n}}.mlp", inner=False),
            "vision_encoder.neck.convs.{n}.{p}": "image_encoder.neck.convs.{n}.conv.{p}",
            "prompt_encoder.shared_embedding.positional_embedding": f"{_PROMPT}pe_layer.positional_encoding_gaussian_matrix",
            "prompt_encoder.mask_embed.conv1.{p}": f"{_PROMPT}mask_downscaling.0.{{p}}",
            "prompt_encoder.mask_embed.layer_norm1.{p}": f"{_PROMPT}mask_downscaling.1.{{p}}",
            "prompt_encoder.mask_embed.conv2.{p}": f"{_PROMPT}mask_downscaling.3.{{p}}",
            "prompt_encoder.mask_embed.layer_norm2.{p}": f"{_PROMPT}mask_downscaling.4.{{p}}",
            "prompt_encoder.mask_embed.conv3.{p}": f"{_PROMPT}mask_downscaling.6.{{p}}",
            "prompt_encoder.no_mask_embed.weight": f"{_PROMPT}no_mask_embed.weight",
            "prompt_encoder.not_a_point_embed.weight": f"{_PROMPT}not_a_point_embed.weight",
            "mask_decoder.transformer.layers.{n}.layer_norm{m}.{p}": f"{_DECODER}transformer.layers.{{n}}.norm{{m}}.{{p}}",
            "mask_decoder.transformer.layer_norm_final_attn.{p}": f"{_DECODER}transformer.norm_final_attn.{{p}}",
            **_mlp("mask_decoder.transformer.layers.{n}.mlp", f"{_DECODER}transformer.layers.{{n}}.mlp", inner=False),
            "mask_decoder.transformer.{rest}.o_proj.{p}": f"{_DECODER}transformer.{{rest}}.out_proj.{{p}}",
            "mask_decoder.transformer.{rest}": f"{_DECODER}transformer.{{rest}}",
            "mask_decoder.upscale_conv1.{p}": f"{_DECODER}output_upscaling.0.{{p}}",
            "mask_decoder.upscale_layer_norm.{p}": f"{_DECODER}output_upscaling.1.{{p}}",
            "mask_decoder.upscale_conv2.{p}": f"{_DECODER}output_upscaling.3.{{p}}",
            **_mlp("mask_decoder.output_hypernetworks_mlps.{n}", f"{_DECODER}output_hypernetworks_mlps.{{n}}", inner=True),
            **_mlp("mask_decoder.iou_prediction_head", f"{_DECODER}iou_prediction_head", inner=True),
            **_mlp("mask_decoder.pred_obj_score_head", f"{_DECODER}pred_obj_score_head", inner=True),
            "mask_decoder.{rest}": f"{_DECODER}{{rest}}",
        }
    ),
    Rule(
        "prompt_encoder.point_embed.weight",
        tuple(f"{_PROMPT}point_embeddings.{i}.weight" for i in range(4)),
        split=lambda points_4C: points_4C.tensor_split(4),
    ),
)
_SHARED = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
_VIDEO = "tracks objects through video; a still image never runs it"
_DROPPED = {
    _SHARED[0]: f"a second copy of {_SHARED[1]}, which is checked",
    "memory_attention.{rest}": _VIDEO,
    "memory_encoder.{rest}": _VIDEO,
    "memory_temporal_positional_encoding": _VIDEO,
    "mask_downsample.{p}": _VIDEO,
    "object_pointer_proj.{rest}": _VIDEO,
    "temporal_positional_encoding_projection_layer.{p}": _VIDEO,
    "no_memory_positional_encoding": _VIDEO,
    "no_object_pointer": _VIDEO,
    "occlusion_spatial_embedding_parameter": _VIDEO,
}
_FRESH = ("memory_attention.", "memory_encoder.", "maskmem_tpos_enc", "no_mem_pos_enc")
"""Parts of the `sam2` package's class that only video runs: they keep the values that they are built with."""

_FIXED: dict[str, Any] = {
    "vision_config.backbone_config.num_channels": 3,
    "vision_config.backbone_config.patch_kernel_size": [7, 7],
    "vision_config.backbone_config.patch_stride": [4, 4],
    "vision_config.backbone_config.patch_padding": [3, 3],
    "vision_config.backbone_config.query_stride": [2, 2],
    "vision_config.backbone_config.mlp_ratio": 4.0,
    "vision_config.backbone_config.hidden_act": "gelu",
    "vision_config.backbone_config.layer_norm_eps": 1e-6,
    "vision_config.fpn_kernel_size": 1,
    "vision_config.fpn_stride": 1,
    "vision_config.fpn_padding": 0,
    "vision_config.fpn_top_down_levels": [2, 3],
    "vision_config.num_feature_levels": 3,
    "prompt_encoder_config.patch_size": 16,
    "prompt_encoder_config.mask_input_channels": 16,
    "prompt_encoder_config.num_point_embeddings": 4,
    "prompt_encoder_config.scale": 1,
    "prompt_encoder_config.hidden_act": "gelu",
    "prompt_encoder_config.layer_norm_eps": 1e-6,
    "mask_decoder_config.hidden_act": "gelu",
    "mask_decoder_config.mlp_dim": 2048,
    "mask_decoder_config.num_hidden_layers": 2,
    "mask_decoder_config.num_attention_heads": 8,
    "mask_decoder_config.attention_downsample_rate": 2,
    "mask_decoder_config.num_multimask_outputs": 3,
    "mask_decoder_config.iou_head_depth": 3,
    "mask_decoder_config.iou_head_hidden_dim": 256,
}
"""Entries of `transformers`' configuration that the `sam2` package has no argument for, with what it does."""


def convert_sam2(source: Path, out: Path) -> None:
    """Write a SAM2 folder.

    Args:
        source: a published checkpoint file (.pt, its weights under the key ``model``), or a folder of `transformers` with
            `config.json` and weights.
        out: folder to make.

    Raises:
        ValueError: a file is missing or not such a checkpoint, or is of a model that is not known; lists the keys.
    """
    with new_folder(out) as folder:
        if source.is_dir():
            _write_native(source, folder)
        else:
            write_official(read_weights(source, under=("model",)), prefix="", source=source, folder=folder)


def write_official(weights: Mapping[str, Tensor], *, prefix: str, source: Path, folder: Path) -> None:
    """Write weights in the `sam2` package's layout, of one of its published models.

    Args:
        weights: each key with `prefix` before it; below a prefix `gamma` may be called `g_weight`, as Sa2VA has to because old
            `transformers` rename the former.
        prefix: empty for the package's own files.
        source: where the weights come from, for messages.
        folder: to write to.

    Raises:
        ValueError: they are not exactly the weights of one of them; lists the keys.
    """
    config = official_config(_name(weights, prefix, source))
    model = build_sam2(config)
    rules = renames({f"{prefix}{{rest}}.g_weight": "{rest}.gamma"} if prefix else {}) + renames({f"{prefix}{{rest}}": "{rest}"})
    model.load_state_dict(translate(weights, rules, expected=shapes(model), dropped={}, source=source))
    save_sam2(model, config=config, folder=folder)


def _name(weights: Mapping[str, Tensor], prefix: str, source: Path) -> str:
    """Which published model it is, by the width and depth of its trunk and a part that came with 2.1."""
    trunk_prefix = f"{prefix}{_ENCODER}"
    place = f"{trunk_prefix}pos_embed"
    if place not in weights:
        refuse({"missing": [place]}, source=source)
    if weights[place].ndim != 4:
        refuse({"of another shape": [f"{place} {tuple(weights[place].shape)}"]}, source=source)
    within = [key.removeprefix(trunk_prefix).split(".") for key in weights if key.startswith(trunk_prefix)]
    blocks = {steps[1] for steps in within if steps[0] == "blocks"}
    found = (weights[place].shape[1], len(blocks), f"{prefix}no_obj_embed_spatial" in weights)
    for name in OFFICIAL:
        config = official_config(name)
        trunk = {"embed_dim": 96, "stages": (2, 3, 16, 3)} | config["image_encoder"]["trunk"]  # Hiera's own defaults
        if found == (trunk["embed_dim"], sum(trunk["stages"]), bool(config.get("no_obj_embed_spatial"))):
            return name
    raise ValueError(
        f"{source}: a trunk of {found[1]} blocks, {found[0]} channels at first, is none of the published models "
        f"{', '.join(OFFICIAL)}"
    )


def _write_native(source: Path, folder: Path) -> None:
    config = _tree(source / "config.json")
    weights = read_weights(source)
    if all(key in weights for key in _SHARED) and not torch.equal(*(weights[key] for key in _SHARED)):
        refuse({f"that differ from {_SHARED[1]}": [_SHARED[0]]}, source=source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the parts in _FRESH
        model = build_sam2(config)
    expected = {key: shape for key, shape in shapes(model).items() if not key.startswith(_FRESH)}
    state = translate(weights, _RULES, expected=expected, dropped=_DROPPED, source=source)
    model.load_state_dict(state, strict=False)
    save_sam2(model, config=config, folder=folder)


def _tree(path: Path) -> dict[str, Any]:
    """The `sam2` package's tree for a configuration of `transformers`."""
    read = Section.read(path)
    read.one_of("model_type", "sam2", "sam2_video")
    try:
        native = Sam2Config.from_dict(read.values)  # with the defaults of what the file leaves out
    except StrictDataclassError as error:
        raise ValueError(f"{path}: {error}") from error
    vision, backbone = native.vision_config, native.vision_config.backbone_config
    width, size = vision.fpn_hidden_size, native.prompt_encoder_config.image_size
    doublings = [2**stage for stage in range(len(backbone.blocks_per_stage))]
    heads = backbone.num_attention_heads_per_stage[0]
    fixed = _FIXED | {
        "vision_config.backbone_config.image_size": [size, size],
        "vision_config.backbone_config.embed_dim_per_stage": [backbone.hidden_size * times for times in doublings],
        "vision_config.backbone_config.num_attention_heads_per_stage": [heads * times for times in doublings],
        "vision_config.backbone_channel_list": backbone.embed_dim_per_stage[::-1],
        "prompt_encoder_config.hidden_size": width,
        "mask_decoder_config.hidden_size": width,
    }
    for name, allowed in fixed.items():
        value = reduce(getattr, name.split("."), native)
        if (list(value) if isinstance(value, tuple) else value) != allowed:
            raise ValueError(f"{path}: {name} is {value!r}; allowed is {allowed!r}")
    return still_image_config(
        image_size=size,
        width=width,
        trunk={
            "embed_dim": backbone.hidden_size,
            "num_heads": heads,
            "stages": list(backbone.blocks_per_stage),
            "q_pool": backbone.num_query_pool_stages,
            "global_att_blocks": list(backbone.global_attention_blocks),
            "window_pos_embed_bkg_spatial_size": list(backbone.window_positional_embedding_background_size),
            "window_spec": list(backbone.window_size_per_stage),
        },
        channels=vision.backbone_channel_list,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
    )
