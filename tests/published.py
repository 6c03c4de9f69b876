"""Checkpoints in the layouts that their makers publish, tiny and with random weights.

Configurations are written out by hand, entry by entry as in the files on the hub, with the widths and depths alone made
smaller: what a library of today writes says more, and hides what a default does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Sam2VideoConfig,
    Sam2VideoModel,
)

from tiny import tiny_internvl, tiny_tokenizer

_VISION = {
    "architectures": ["InternVisionModel"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 32,
    "image_size": [32, 32],
    "initializer_factor": 0.1,
    "initializer_range": 1e-10,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-06,
    "layer_scale_init_value": 0.1,
    "model_type": "internvl_vision",
    "norm_type": "layer_norm",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": [16, 16],
    "projection_dropout": 0.0,
    "torch_dtype": "bfloat16",
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,
    "use_qk_norm": False,
}


def internvl_config(tokenizer: Any) -> dict[str, Any]:
    """``config.json`` of OpenGVLab/InternVL3-1B-hf and -8B-hf, which differ in sizes alone (as in vllm-project/vllm#17634).

    Nothing in it says whether the output head is the input embedding, neither at the top nor of the language model.
    """
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 1.0,  # 0.5 there, where a tile has 32 x 32 patches
        "image_seq_length": 4,
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": tokenizer.eos_token_id,
            "hidden_act": "silu",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 128,
            "max_position_embeddings": 32768,
            "max_window_layers": 70,
            "model_type": "qwen2",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": len(tokenizer),
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vision_config": _VISION,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def write_internvl(folder: Path, *, head: str, dtype: torch.dtype = torch.float32, **entries: Any) -> dict[str, Tensor]:
    """An InternVL3-hf folder, by the names that its weights have there (those of transformers 4.51).

    Args:
        folder: to write to.
        head: ``"own"``: the output head differs from the input embedding; ``"copy"``: it is there, and equal;
            ``"none"``: there is one matrix.
        dtype: of the weights; bfloat16 there.
        entries: of ``config.json``, added; ``text__x`` to the language model's.

    Returns:
        The weights by the names of today.
    """
    tiny_internvl(folder)  # for its processor
    config = internvl_config(tiny_tokenizer())
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = InternVLForConditionalGeneration(InternVLConfig.from_dict(config | {"tie_word_embeddings": False}))
        drawn = {key: value + 0.02 * torch.randn(value.shape) for key, value in model.state_dict().items()}
    weights = {key: value.to(dtype) for key, value in drawn.items()}
    embedding = weights["model.language_model.embed_tokens.weight"]
    if head == "copy":
        weights["lm_head.weight"] = embedding.clone()
    elif head == "none":
        del weights["lm_head.weight"]
    published = {published_name(key): value for key, value in weights.items()}
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    for key, value in entries.items():
        part, _, name = key.rpartition("__")
        (config[f"{part}_config"] if part else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return weights


def published_name(key: str) -> str:
    """The name of a weight on the hub."""
    if key.startswith("lm_head."):
        return f"language_model.{key}"
    return key.removeprefix("model.").replace("language_model.", "language_model.model.", 1)


def write_depth_anything(folder: Path) -> None:
    """A folder as depth-anything/Depth-Anything-V2-Large-hf: configuration, processor, and weights by their names there."""
    config = depth_anything_config()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # The library still writes DINOv2's published names: attention.attention.query and so on.
        DepthAnythingForDepthEstimation(DepthAnythingConfig.from_dict(config)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(depth_anything_processor()))


def depth_anything_config() -> dict[str, Any]:
    """Its ``config.json``; there 24 layers of 1024, of which 5, 12, 18 and 24 give features."""
    return {
        "_commit_hash": None,
        "architectures": ["DepthAnythingForDepthEstimation"],
        "backbone": None,
        "backbone_config": {
            "architectures": ["Dinov2Model"],
            "hidden_size": 32,
            "image_size": 518,
            "model_type": "dinov2",
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "out_indices": [1, 2, 3, 4],
            "patch_size": 14,
            "reshape_hidden_states": False,
            "torch_dtype": "float32",
        },
        "fusion_hidden_size": 8,
        "head_hidden_size": 32,
        "head_in_index": -1,
        "initializer_range": 0.02,
        "model_type": "depth_anything",
        "neck_hidden_sizes": [8, 16, 32, 32],
        "patch_size": 14,
        "reassemble_factors": [4, 2, 1, 0.5],
        "reassemble_hidden_size": 32,
        "torch_dtype": "float32",
        "transformers_version": None,
        "use_pretrained_backbone": False,
    }


def depth_anything_processor() -> dict[str, Any]:
    """Its ``preprocessor_config.json``."""
    return {
        "do_normalize": True,
        "do_pad": False,
        "do_rescale": True,
        "do_resize": True,
        "ensure_multiple_of": 14,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "DPTImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "keep_aspect_ratio": True,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 518, "width": 518},
        "size_divisor": None,
    }


SMALL_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 16,
    "num_attention_heads": 1,
    "image_size": [128, 128],
    "blocks_per_stage": [1, 2, 3, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [8, 4, 6, 3],
    "window_positional_embedding_background_size": [7, 7],
    "global_attention_blocks": [4],
}
"""The backbone of a small SAM2, in the form of `transformers`."""


def write_sam2(folder: Path) -> None:
    """A folder as facebook/sam2.1-hiera-large: the weights of the video model, and a configuration by its conversion."""
    width = {"hidden_size": 64}
    config = Sam2VideoConfig(
        vision_config={
            "backbone_config": SMALL_HIERA,
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 64,
        },
        prompt_encoder_config={**width, "image_size": 128},
        mask_decoder_config=width,
        image_size=128,
        memory_attention_hidden_size=64,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_num_layers=1,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=64,
        memory_encoder_output_channels=16,
        mask_downsampler_embed_dim=64,
        memory_fuser_embed_dim=64,
        memory_fuser_num_layers=1,
        memory_fuser_intermediate_dim=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam2VideoModel(config)
        shared = (
            model.prompt_encoder.shared_embedding.positional_embedding
        )  # in the file by two names, as the conversion writes it
        model.shared_image_embedding.positional_embedding.copy_(shared)
        model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written |= {"torch_dtype": written.pop("dtype"), "transformers_version": "4.56.0.dev0"}
    (folder / "config.json").write_text(json.dumps(written))
