"""InternVL2.5 and InternVL3 as OpenGVLab publishes them -> `transformers`' `InternVLForConditionalGeneration`.

Source: the modeling files of OpenGVLab/InternVL2_5-* and InternVL3-*, and of internlm/internlm2_5-*. The language model is
Qwen2.5, or InternLM2.5, which computes what Llama does but packs queries, keys and values into one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from perceptio_core.convert.checkpoint_files import Section, new_folder, read_weights
from perceptio_core.convert.internvl_config import QWEN2, Tiling, internvl_config, language_model, tiling
from perceptio_core.convert.lora import merge_lora
from perceptio_core.convert.rules import Rule, renames, translate
from perceptio_core.convert.tokenizer import read_tokenizer
from perceptio_core.files import follow_umask
from perceptio_core.weights import shapes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1: the original's, whatever its files say

_BLOCK, _LAYER = "vision_model.encoder.layers.{n}.", "model.vision_tower.encoder.layer.{n}."
_VISION = (
    *renames(
        {
            "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
            "vision_model.embeddings.position_embedding": "model.vision_tower.embeddings.position_embeddings",
            "vision_model.embeddings.patch_embedding.{p}": "model.vision_tower.embeddings.patch_embeddings.projection.{p}",
            f"{_BLOCK}ls{{m}}": f"{_LAYER}lambda_{{m}}",
            f"{_BLOCK}norm1.{{p}}": f"{_LAYER}layernorm_before.{{p}}",
            f"{_BLOCK}norm2.{{p}}": f"{_LAYER}layernorm_after.{{p}}",
            f"{_BLOCK}attn.proj.{{p}}": f"{_LAYER}attention.projection_layer.{{p}}",
            f"{_BLOCK}attn.q_norm.weight": f"{_LAYER}attention.q_norm.weight",
            f"{_BLOCK}attn.k_norm.weight": f"{_LAYER}attention.k_norm.weight",
            f"{_BLOCK}mlp.fc{{m}}.{{p}}": f"{_LAYER}mlp.fc{{m}}.{{p}}",
            "mlp1.0.{p}": "model.multi_modal_projector.layer_norm.{p}",
            "mlp1.1.{p}": "model.multi_modal_projector.linear_1.{p}",
            "mlp1.3.{p}": "model.multi_modal_projector.linear_2.{p}",
        }
    ),
    Rule(
        f"{_BLOCK}attn.qkv.{{p}}",
        tuple(f"{_LAYER}attention.{name}_proj.{{p}}" for name in "qkv"),
        split=lambda packed: packed.tensor_split(3),
    ),
)
_QWEN2 = renames(
    {
        "language_model.lm_head.weight": "lm_head.weight",
        "language_model.model.{rest}": "model.language_model.{rest}",
    }
)
_DEEP, _DECODER = "language_model.model.layers.{n}.", "model.language_model.layers.{n}."
_INTERNLM2 = renames(
    {
        "language_model.output.weight": "lm_head.weight",
        "language_model.model.tok_embeddings.weight": "model.language_model.embed_tokens.weight",
        "language_model.model.norm.weight": "model.language_model.norm.weight",
        f"{_DEEP}attention.wo.{{p}}": f"{_DECODER}self_attn.o_proj.{{p}}",
        f"{_DEEP}feed_forward.w1.weight": f"{_DECODER}mlp.gate_proj.weight",
        f"{_DEEP}feed_forward.w2.weight": f"{_DECODER}mlp.down_proj.weight",
        f"{_DEEP}feed_forward.w3.weight": f"{_DECODER}mlp.up_proj.weight",
        f"{_DEEP}attention_norm.weight": f"{_DECODER}input_layernorm.weight",
        f"{_DEEP}ffn_norm.weight": f"{_DECODER}post_attention_layernorm.weight",
    }
)
_HEADS = {
    "language_model.lm_head.weight": "language_model.model.embed_tokens.weight",
    "language_model.output.weight": "language_model.model.tok_embeddings.weight",
}
_DROPPED = {
    "language_model.model.layers.{n}.self_attn.rotary_emb.inv_freq": "a function of rope_theta and the size of a head",
    "language_model.model.layers.{n}.attention.rotary_emb.inv_freq": "a function of rope_theta and the size of a head",
    "language_model.model.rotary_emb.inv_freq": "a function of rope_theta and the size of a head",
    "vision_model.embeddings.position_ids": "0, 1, 2, ...",
}


def convert_internvl(source: Path, out: Path) -> None:
    """Write an original InternVL as a native one, with its processor.

    Args:
        source: folder as on the hub: `config.json`, weights, tokenizer.
        out: folder to make.

    Raises:
        ValueError: a file is missing, an entry of `config.json` or the tokenizer is not supported, or the weights are not
            exactly those that it describes; names file, key and what is allowed.
    """
    config = Section.read(source / "config.json")
    config.one_of("model_type", "internvl_chat")
    with new_folder(out) as folder:
        write_internvl(config, read_weights(source), source=source, folder=folder)


def write_internvl(
    config: Section, weights: Mapping[str, Tensor], *, source: Path, folder: Path
) -> tuple[InternVLForConditionalGeneration, PreTrainedTokenizerFast]:
    """Write a native InternVL to `folder`, which exists; see `convert_internvl`.

    Args:
        config: the original `config.json`, of any `model_type` that is built like InternVL.
        weights: ``vision_model.*``, ``mlp1.*`` and ``language_model.*``, with or without LoRA in the language model.
        source: folder of the original tokenizer.
        folder: to write to.

    Returns:
        The model, whose weights alone are there, not what it computes from its configuration; and the tokenizer.
    """
    tokenizer = read_tokenizer(source, config)
    native = internvl_config(
        config,
        image_token_id=tokenizer.context_image_token_id,
        tokens={name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    rules = (*_VISION, *(_QWEN2 if language_model(config) == QWEN2 else _internlm2(native.text_config)))
    rank = config.get("use_llm_lora", int, 0)
    merged = merge_lora(weights, prefix="language_model.", rank=rank, source=source)
    tied = _drop_copied_head(merged, tied=native.tie_word_embeddings)
    native.tie_word_embeddings = native.text_config.tie_word_embeddings = tied
    with torch.device("meta"):  # names and shapes only: a model of 8 B parameters is held once, not twice
        model = InternVLForConditionalGeneration(native)
    expected = shapes(model)
    if tied:
        del expected["lm_head.weight"]
    state = translate(merged, rules, expected=expected, dropped=_DROPPED, source=source)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    follow_umask(*folder.glob("*.safetensors"))
    _processor(tokenizer, tiling(config)).save_pretrained(folder)
    return model, tokenizer


def _internlm2(text_config: object) -> tuple[Rule, ...]:
    """Rules with the split of ``wqkv``, whose rows are grouped by key head: its query heads, its key, its value."""
    heads, key_heads = text_config.num_attention_heads, text_config.num_key_value_heads  # type: ignore[attr-defined]
    split = partial(split_wqkv, groups=heads // key_heads, key_heads=key_heads)
    targets = tuple(f"{_DECODER}self_attn.{name}_proj.{{p}}" for name in "qkv")
    return (*_INTERNLM2, Rule(f"{_DEEP}attention.wqkv.{{p}}", targets, split=split))


def split_wqkv(packed: Tensor, *, groups: int, key_heads: int) -> Sequence[Tensor]:
    """Queries, keys and values of InternLM2's packed matrix (or bias).

    Args:
        packed: (key_heads * (groups + 2) * size of a head, ...); per key head `groups` query heads, then key, then value.
        groups: query heads of a key head.
        key_heads: number of key heads.

    Returns:
        Three tensors, heads in their order: (key_heads * groups * size of a head, ...), (key_heads * size of a head, ...)
        twice. Rows that do not divide so are left over from each.
    """
    size = len(packed) // (key_heads * (groups + 2))
    heads = packed[: key_heads * (groups + 2) * size].unflatten(0, (key_heads, groups + 2, size))
    return heads[:, :groups].flatten(0, 2), heads[:, groups].flatten(0, 1), heads[:, groups + 1].flatten(0, 1)


def _drop_copied_head(weights: dict[str, Tensor], *, tied: bool) -> bool:
    """Whether the output head is the input embedding; if so, a copy of it is taken out of `weights`, in place.

    Args:
        weights: of the original layout, merged.
        tied: whether the configuration says so. Two matrices that differ are two all the same.
    """
    for head, embedding in _HEADS.items():
        if head in weights and embedding in weights:
            tied = tied and torch.equal(weights[head], weights[embedding])
            if tied:
                del weights[head]
    return tied


def _processor(tokenizer: PreTrainedTokenizerFast, tiles: Tiling) -> InternVLProcessor:
    images = {"size": {"height": tiles.side, "width": tiles.side}, "image_mean": list(MEAN), "image_std": list(STD)}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            **images, crop_to_patches=tiles.dynamic, min_patches=tiles.fewest, max_patches=tiles.most
        ),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**images),
        image_seq_length=tiles.tokens,
        chat_template=tokenizer.chat_template,
    )
