"""The foundations of the paper profiles as the hub has them, with random weights, whole or with narrower layers.

Layers, tokens, tiles and pixels are the published ones; `NARROW` has about a tenth of the width, with fewer heads. The
configurations are those of `published`, with the published sizes. A narrow SAM2 needs a narrow ``sam2.1_hiera_l.yaml``, which
the package `sam2` holds: `narrow_sam2_package` makes a copy of the package with one.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, InternVLConfig, InternVLForConditionalGeneration

import published
from perceptio_core.segmentation.sam2 import build_sam2, official_config

_OF_QWEN = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
_OF_INTERNVL = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", "<video>")
_WORDS = 151_643
"""Of Qwen2.5, before its special tokens; here the bytes, and words that mean nothing."""
ROWS = 151_674
"""Of the published embedding: <video> is a token too many for it."""
TOKENS = _WORDS + len(_OF_QWEN) + len(_OF_INTERNVL)
_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths of the three models; the numbers of layers are the published ones in each.

    Attributes:
        text: hidden size, inner size, heads, key and value heads of the language model.
        vision: hidden size, inner size, heads of InternViT.
        teacher: hidden size, heads of DINOv2; channels of the neck; of the fusion.
        sam2: `embed_dim` of Hiera.
    """

    text: tuple[int, int, int, int]
    vision: tuple[int, int, int]
    teacher: tuple[int, int, tuple[int, ...], int]
    sam2: int


PUBLISHED = Sizes(text=(896, 4864, 14, 2), vision=(1024, 4096, 16), teacher=(1024, 16, (256, 512, 1024, 1024), 256), sam2=144)
NARROW = Sizes(text=(84, 486, 7, 1), vision=(96, 408, 2), teacher=(96, 2, (24, 48, 96, 96), 24), sam2=16)


def internvl3_1b(sizes: Sizes) -> dict[str, bytes]:
    """The files of OpenGVLab/InternVL3-1B-hf that `transformers` reads, and one that nothing here reads."""
    config = published.internvl_config(_Ids())
    text, vision = config["text_config"], dict(config["vision_config"])
    text["hidden_size"], text["intermediate_size"], text["num_attention_heads"], text["num_key_value_heads"] = sizes.text
    text |= {"num_hidden_layers": 24, "vocab_size": ROWS, "bos_token_id": 151_643, "max_window_layers": 21}
    vision["hidden_size"], vision["intermediate_size"], vision["num_attention_heads"] = sizes.vision
    vision |= {"num_hidden_layers": 24, "image_size": [448, 448], "patch_size": [14, 14]}
    config |= {"downsample_ratio": 0.5, "image_seq_length": 256, "vision_config": vision}
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig.from_dict(config | {"tie_word_embeddings": False}))
    weights = {published.published_name(key): _drawn(key, value) for key, value in model.state_dict().items()}
    return {
        "config.json": _json(config),
        "generation_config.json": _json({"_from_model_config": True, "eos_token_id": 151_645, "bos_token_id": 151_643}),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "README.md": b"---\nlicense: other\n---\n",
        **_processor(),
    }


def depth_anything_v2_large(sizes: Sizes) -> dict[str, bytes]:
    """The files of depth-anything/Depth-Anything-V2-Large-hf."""
    config, processor = published.depth_anything_config(), published.depth_anything_processor()
    hidden, heads, neck, fusion = sizes.teacher
    at = [5, 12, 18, 24]
    layers = {"num_hidden_layers": 24, "out_indices": at, "out_features": [f"stage{number}" for number in at]}
    config["backbone_config"] |= {"hidden_size": hidden, "num_attention_heads": heads, **layers}
    config |= {"reassemble_hidden_size": hidden, "neck_hidden_sizes": list(neck), "fusion_hidden_size": fusion}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DepthAnythingForDepthEstimation(DepthAnythingConfig.from_dict(config))
        for key, value in model.named_parameters():
            if "head" in key or "neck" in key:  # drawn so small that every map is flat
                value.data.mul_(3)
        model.head.conv3.bias.data.fill_(1.0)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = Path(folder, "model.safetensors").read_bytes()
    return {"config.json": _json(config), "preprocessor_config.json": _json(processor), "model.safetensors": weights}


def sam2_1_large(sizes: Sizes) -> dict[str, bytes]:
    """The original files of facebook/sam2.1-hiera-large: a pickle of tensors, and the configuration beside it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_sam2(json.loads(_narrowed(json.dumps(official_config("sam2.1_hiera_l")), sizes)))
    stream = io.BytesIO()
    torch.save({"model": model.state_dict()}, stream)
    return {"sam2.1_hiera_large.pt": stream.getvalue(), "sam2.1_hiera_l.yaml": b"# as in the package sam2\n"}


def narrow_sam2_package(folder: Path, sizes: Sizes) -> Path:
    """A copy of the package `sam2` below `folder`, to be found before the installed one; returns `folder`."""
    with resources.as_file(resources.files("sam2")) as package:
        shutil.copytree(package, folder / "sam2", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "sam2/configs/sam2.1/sam2.1_hiera_l.yaml"
    path.write_text(_narrowed(path.read_text(), sizes))
    return folder


def _narrowed(config: str, sizes: Sizes) -> str:
    """Hiera-L's configuration, as YAML or JSON, with another `embed_dim` and what follows from it."""
    before, after = ([PUBLISHED.sam2, sizes.sam2][place] for place in (0, 1))
    for marks in ("embed_dim: {}", '"embed_dim": {}'):
        config = config.replace(marks.format(before), marks.format(after))
    channels = [[width * factor for factor in (8, 4, 2, 1)] for width in (before, after)]
    return config.replace(str(channels[0]), str(channels[1]))


class _Ids:
    """What `published.internvl_config` asks of a tokenizer."""

    eos_token_id = 151_645

    def convert_tokens_to_ids(self, token: str) -> int:
        return _WORDS + (*_OF_QWEN, *_OF_INTERNVL).index(token)

    def __len__(self) -> int:
        return TOKENS


def _drawn(key: str, like: Tensor) -> Tensor:
    """Random weights in bfloat16; norms near 1 and layer scales of 0.1, so that 24 layers neither vanish nor explode."""
    generator = torch.Generator().manual_seed(sum(key.encode()))
    noise = torch.empty(like.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    if key.endswith(("lambda_1", "lambda_2")):
        return noise + 0.1
    return noise + 1 if "norm" in key and key.endswith("weight") else noise


def _processor() -> dict[str, bytes]:
    """Tokenizer, pictures and template, as the conversion of transformers 4.52 wrote them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"\x00{number}" for number in range(_WORDS - len(alphabet)))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (*_OF_QWEN, *_OF_INTERNVL)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {str(_WORDS + place): {"content": token, **entry} for place, token in enumerate(special)}
    about = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": tokens,
        "additional_special_tokens": list(_OF_INTERNVL[:9]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": names,
        **names,
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "processor_class": "InternVLProcessor",
        "return_token_type_ids": False,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    pictures = {
        "crop_size": None,
        "crop_to_patches": False,
        "data_format": "channels_first",
        "default_to_square": True,
        "device": None,
        "do_center_crop": None,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "input_data_format": None,
        "max_patches": 12,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "return_tensors": None,
        "size": {"height": 448, "width": 448},
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(about),
        "special_tokens_map.json": _json({"additional_special_tokens": list(_OF_INTERNVL[:9]), "pad_token": "<|endoftext|>"}),
        "added_tokens.json": _json({token: _WORDS + place for place, token in enumerate(special)}),
        "vocab.json": _json({word: number for number, word in enumerate(words)}),
        "merges.txt": b"#version: 0.2\n",
        "chat_template.jinja": _TEMPLATE.encode(),
        "preprocessor_config.json": _json(pictures),
        "processor_config.json": _json({"image_seq_length": 256, "processor_class": "InternVLProcessor"}),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()
