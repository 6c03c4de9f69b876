"""InternVL's original `config.json` in terms of `transformers`' own classes.

Source: the configuration and model files of OpenGVLab/InternVL2_5-* and InternVL3-*. What changes the computation is
read and checked; the many entries that only describe training or generation are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import InternVLConfig, LlamaConfig, PreTrainedConfig, Qwen2Config
from transformers.models.internvl import InternVLVisionConfig

from perceptio_core.convert.checkpoint_files import Section

QWEN2, INTERNLM2 = "Qwen2ForCausalLM", "InternLM2ForCausalLM"


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How images become tiles of the vision tower.

    Attributes:
        side: of a tile, in pixels.
        tokens: image tokens of a tile.
        dynamic: whether an image is cut into tiles, with a thumbnail, or is a single one.
        fewest, most: bounds of the number of tiles of a cut image.
    """

    side: int
    tokens: int
    dynamic: bool
    fewest: int
    most: int


def language_model(config: Section) -> str:
    """Class of the language model in the original code, `QWEN2` or `INTERNLM2`.

    Raises:
        ValueError: it is another one.
    """
    llm = config.section("llm_config")
    names = llm.get("architectures", list)
    if names not in ([QWEN2], [INTERNLM2]):
        raise llm.fault("architectures", f"['{QWEN2}'] or ['{INTERNLM2}']")
    return str(names[0])


def tiling(config: Section) -> Tiling:
    """The tiles of a model.

    Raises:
        ValueError: they do not come out in whole tokens, or are made in a way that is not supported.
    """
    vision = config.section("vision_config")
    side, patch = vision.get("image_size", int), vision.get("patch_size", int)
    ratio = config.get("downsample_ratio", (int, float))
    grid = side // patch * ratio
    if side % patch or grid != int(grid):
        raise config.fault("downsample_ratio", f"what divides the {side} / {patch} patches a side into whole tokens")
    dynamic = config.one_of("dynamic_image_size", True, False)
    if dynamic:
        config.one_of("use_thumbnail", True)
    config.one_of("pad2square", False, None, default=False)
    config.one_of("force_image_size", side, None, default=None)
    return Tiling(
        side=side,
        tokens=int(grid) ** 2,
        dynamic=dynamic,
        fewest=config.get("min_dynamic_patch", int, 1),
        most=config.get("max_dynamic_patch", int, 12),
    )


def internvl_config(config: Section, *, image_token_id: int, tokens: dict[str, int | None]) -> InternVLConfig:
    """The native configuration.

    Args:
        config: the original `config.json`.
        image_token_id: of ``<IMG_CONTEXT>``.
        tokens: `bos_token_id`, `eos_token_id` and `pad_token_id` of the tokenizer; the original names other ones for the
            language model alone.

    Raises:
        ValueError: an entry is missing or not supported; names file, key and what is allowed.
    """
    config.one_of("select_layer", -1)  # an earlier layer would need the tower cut off
    config.one_of("ps_version", "v2")  # v1 transposes the image tokens
    config.one_of("use_backbone_lora", 0, default=0)
    text = _text(config, tokens)
    tied = text.tie_word_embeddings
    return InternVLConfig(
        vision_config=_vision(config.section("vision_config")),
        text_config=text,
        image_token_id=image_token_id,
        image_seq_length=tiling(config).tokens,
        downsample_ratio=config.get("downsample_ratio", (int, float)),
        tie_word_embeddings=tied,
    )


def _vision(vision: Section) -> InternVLVisionConfig:
    _divides(vision, "num_attention_heads", "hidden_size")
    return InternVLVisionConfig(
        **{key: vision.get(key, int) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        **{key: vision.get(key, int) for key in ("intermediate_size", "image_size", "patch_size")},
        num_channels=vision.get("num_channels", int, 3),
        attention_bias=vision.one_of("qkv_bias", True, False),
        use_qk_norm=vision.one_of("qk_normalization", True, False),
        norm_type=vision.one_of("norm_type", "layer_norm", "rms_norm"),
        layer_norm_eps=vision.get("layer_norm_eps", float),
        hidden_act=vision.one_of("hidden_act", "gelu"),
        hidden_dropout_prob=float(vision.get("dropout", (int, float), 0.0)),
        attention_dropout=float(vision.get("attention_dropout", (int, float), 0.0)),
    )


def _text(config: Section, tokens: dict[str, int | None]) -> PreTrainedConfig:
    llm = config.section("llm_config")
    llm.one_of("hidden_act", "silu")
    _divides(llm, "num_attention_heads", "hidden_size")
    _divides(llm, "num_key_value_heads", "num_attention_heads")
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shared: dict[str, Any] = {
        **{key: llm.get(key, int) for key in (*sizes, "num_key_value_heads", "max_position_embeddings")},
        "rms_norm_eps": llm.get("rms_norm_eps", float),
        "rope_parameters": _rope(llm),
        "tie_word_embeddings": llm.one_of("tie_word_embeddings", True, False, default=False),
        **tokens,
    }
    if language_model(config) == QWEN2:
        llm.one_of("use_sliding_window", False, None, default=False)
        return Qwen2Config(**shared, attention_dropout=float(llm.get("attention_dropout", (int, float), 0.0)))
    return LlamaConfig(**shared, attention_bias=llm.one_of("bias", True, False))


def _divides(section: Section, part: str, whole: str) -> None:
    value = section.get(whole, int)
    if section.get(part, int) < 1 or value % section.get(part, int):
        raise section.fault(part, f"a divisor of {whole} = {value}")


def _rope(llm: Section) -> dict[str, Any]:
    """Rotary embeddings; ``dynamic`` scaling acts beyond `max_position_embeddings` only."""
    theta = float(llm.get("rope_theta", (int, float)))
    if llm.get("rope_scaling", dict, None) is None:
        return {"rope_type": "default", "rope_theta": theta}
    scaling = llm.section("rope_scaling")
    kind = scaling.one_of("rope_type" if "rope_type" in scaling.values else "type", "dynamic", "linear")
    return {"rope_type": kind, "rope_theta": theta, "factor": float(scaling.get("factor", (int, float)))}
