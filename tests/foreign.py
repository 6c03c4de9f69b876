"""Small random checkpoints in the layouts of other projects, written out key by key, for tests of `perceptio_core.convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, Qwen2Config
from transformers.models.internvl import InternVLVisionConfig

from tiny import CORPUS

SIDE, PATCH, TILE_TOKENS = 64, 16, 4  # 4 x 4 patches, halved a side
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
HEADS, KEY_HEADS, WIDTH, LAYERS = 4, 2, 32, 2
EPS = {"qwen2": 1e-6, "internlm2": 1e-5}


def write_tokenizer(folder: Path, *, whole: bool, added: list[str]) -> dict[str, int]:
    """A byte-level BPE with `added` behind its vocabulary, as one file or as vocab.json and merges.txt; returns its ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    settings: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "pad_token": ADDED[0], "eos_token": ADDED[2]}
    if whole:
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(["<s>", "</s>", *added])
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": added[0]}
        settings["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
        (folder / "tokenization_internlm2.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
        ids = tokenizer.get_vocab()
    else:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
        ids = {**model["vocab"], **{token: len(model["vocab"]) + i for i, token in enumerate(added)}}
        fields = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        settings["added_tokens_decoder"] = {str(ids[token]): {"content": token, **fields} for token in added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ids


def native_internvl(ids: dict[str, int], *, llm: str, tied: bool, qk_norm: bool = False) -> InternVLForConditionalGeneration:
    """What a conversion has to give: random weights, none of them 0 or 1, in evaluation mode."""
    shared: dict[str, Any] = {
        "vocab_size": len(ids),
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "max_position_embeddings": 512,
        "rms_norm_eps": EPS[llm],
        "tie_word_embeddings": tied,
    }
    if llm == "qwen2":
        text = Qwen2Config(**shared, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    else:
        text = LlamaConfig(**shared, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0})
    vision = InternVLVisionConfig(
        hidden_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=40,
        image_size=SIDE,
        patch_size=PATCH,
        attention_bias=not qk_norm,
        use_qk_norm=qk_norm,
        norm_type="rms_norm" if qk_norm else "layer_norm",
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=TILE_TOKENS,
        tie_word_embeddings=tied,
    )
    model = InternVLForConditionalGeneration(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2 + (parameter.mean() == 1))
    return model


def original_weights(model: InternVLForConditionalGeneration, *, llm: str) -> dict[str, Tensor]:
    """Its weights by the names of OpenGVLab's modeling files."""
    new = {key: value.detach().clone() for key, value in model.state_dict().items()}
    old: dict[str, Tensor] = {}
    tower, deep = "model.vision_tower.", "model.language_model."
    old["vision_model.embeddings.class_embedding"] = new[f"{tower}embeddings.cls_token"]
    old["vision_model.embeddings.position_embedding"] = new[f"{tower}embeddings.position_embeddings"]
    for kind in ("weight", "bias"):
        old[f"vision_model.embeddings.patch_embedding.{kind}"] = new[f"{tower}embeddings.patch_embeddings.projection.{kind}"]
        for number, name in (("0", "layer_norm"), ("1", "linear_1"), ("3", "linear_2")):
            old[f"mlp1.{number}.{kind}"] = new[f"model.multi_modal_projector.{name}.{kind}"]
    for n in range(LAYERS):
        a, b = f"vision_model.encoder.layers.{n}.", f"{tower}encoder.layer.{n}."
        old |= {f"{a}ls1": new[f"{b}lambda_1"], f"{a}ls2": new[f"{b}lambda_2"]}
        for kind in ("weight", "bias"):
            if f"{b}attention.q_proj.{kind}" in new:
                parts = [new[f"{b}attention.{name}_proj.{kind}"] for name in "qkv"]
                old[f"{a}attn.qkv.{kind}"] = torch.cat(parts)
            for name, other in (
                ("attn.proj", "attention.projection_layer"),
                ("attn.q_norm", "attention.q_norm"),
                ("attn.k_norm", "attention.k_norm"),
                ("norm1", "layernorm_before"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                if f"{b}{other}.{kind}" in new:
                    old[f"{a}{name}.{kind}"] = new[f"{b}{other}.{kind}"]
    if llm == "qwen2":
        old |= {f"language_model.model.{k.removeprefix(deep)}": v for k, v in new.items() if k.startswith(deep)}
        if not model.config.tie_word_embeddings:
            old["language_model.lm_head.weight"] = new["lm_head.weight"]
        return old
    old["language_model.model.tok_embeddings.weight"] = new[f"{deep}embed_tokens.weight"]
    old["language_model.model.norm.weight"] = new[f"{deep}norm.weight"]
    old["language_model.output.weight"] = new["lm_head.weight"]
    for n in range(LAYERS):
        a, b = f"language_model.model.layers.{n}.", f"{deep}layers.{n}."
        q, k, v = (new[f"{b}self_attn.{name}_proj.weight"] for name in "qkv")
        old[f"{a}attention.wqkv.weight"] = pack(q, k, v, size=WIDTH // HEADS)
        for name, other in (
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            old[f"{a}{name}.weight"] = new[f"{b}{other}.weight"]
    return old


def pack(q: Tensor, k: Tensor, v: Tensor, *, size: int) -> Tensor:
    """InternLM2's order of rows, head by head: the queries of a key head, the key, the value."""
    heads_of = len(q) // len(k)
    rows = []
    for head in range(len(k) // size):
        rows += [q[(head * heads_of + i) * size : (head * heads_of + i + 1) * size] for i in range(heads_of)]
        rows += [k[head * size : (head + 1) * size], v[head * size : (head + 1) * size]]
    return torch.cat(rows)


def original_config(*, llm: str, vocabulary: int, tied: bool, qk_norm: bool = False) -> dict[str, Any]:
    """The entries of an original config.json that matter, and a few that do not."""
    text: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM" if llm == "qwen2" else "InternLM2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "max_position_embeddings": 512,
        "rms_norm_eps": EPS[llm],
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if llm == "qwen2":
        text |= {"use_sliding_window": False, "sliding_window": 32768, "rope_scaling": None}
    else:
        text |= {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    return {
        "model_type": "internvl_chat",
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "hidden_size": 24,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "intermediate_size": 40,
            "image_size": SIDE,
            "patch_size": PATCH,
            "num_channels": 3,
            "qkv_bias": not qk_norm,
            "qk_normalization": qk_norm,
            "norm_type": "rms_norm" if qk_norm else "layer_norm",
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "drop_path_rate": 0.1,
        },
        "llm_config": text,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 6,
        "force_image_size": SIDE,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
    }


def write_internvl(
    folder: Path, *, llm: str, tied: bool = False, qk_norm: bool = False, added: tuple[str, ...] = ()
) -> InternVLForConditionalGeneration:
    """An original InternVL folder; returns the native model of the same weights."""
    folder.mkdir(parents=True)
    ids = write_tokenizer(folder, whole=llm == "internlm2", added=[*ADDED, *added])
    model = native_internvl(ids, llm=llm, tied=tied, qk_norm=qk_norm)
    config = original_config(llm=llm, vocabulary=len(ids), tied=tied, qk_norm=qk_norm)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(original_weights(model, llm=llm), folder / "model.safetensors")
    return model


def shard(folder: Path) -> None:
    """Put half of the weights of ``model.safetensors`` into each of two shards, with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {key: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(sorted(weights))}
    for name in set(where.values()):
        save_file({key: weights[key] for key in weights if where[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def edit(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Set or, with None, delete entries of ``model.safetensors``."""
    weights = load_file(folder / "model.safetensors") | changes
    save_file({key: value for key, value in weights.items() if value is not None}, folder / "model.safetensors")


def reconfigure(folder: Path, place: str, value: Any) -> None:
    """Set an entry of ``config.json``, or delete it with ``...``; a dot in `place` leads to a part of it."""
    config = json.loads((folder / "config.json").read_text())
    *above, key = place.split(".")
    part = config
    for step in above:
        part = part[step]
    part[key] = value
    if value is ...:
        del part[key]
    (folder / "config.json").write_text(json.dumps(config))
