"""The published models' architectures, and Perceptio put together from them without memory for a single weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.internvl import InternVLVisionConfig

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.model import assembly
from perceptio_core.model.adapters import add_adapters
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.params import Profile
from perceptio_core.segmentation.sam2 import build_sam2, official_config
from tiny import SPECIAL, TEMPLATE

Group = dict[str, torch.nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of one InternVL's language model; all have InternViT-300M-448px before it and an output head of its own.

    Attributes:
        repo: the published model that has this architecture.
        published: its number of parameters.
        width, inner, layers, heads, key_heads, head_dim: of the language model.
        rows: of the embedding.
        tokens: of the tokenizer.
        qwen3: Qwen3 (norms on queries and keys, no biases), else Qwen2 (biases on queries, keys and values).
    """

    repo: str
    published: int
    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    rows: int
    tokens: int
    qwen3: bool = False

    def config(self) -> InternVLConfig:
        """The configuration in `transformers`' form."""
        kind = Qwen3Config if self.qwen3 else Qwen2Config
        text = kind(
            vocab_size=self.rows,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_dim,
            max_position_embeddings=32768,
            tie_word_embeddings=False,
        )
        return InternVLConfig(
            vision_config=InternVLVisionConfig(attention_bias=True),  # its other defaults are InternViT-300M-448px's
            text_config=text,
            image_token_id=SPECIAL.index("<IMG_CONTEXT>"),
            tie_word_embeddings=False,
        )


# Sizes: config.json of Qwen2.5-{0.5B, 3B, 7B}-Instruct and Qwen3-4B. Rows: config.json of InternVL2.5 and InternVL3, whose
# native form has one token more, <video>; InternVL3.5 has Qwen3's rows, of which its tokens (about as many) leave some free.
# Parameters: counted by others from the published weights; of InternVL3-8B-hf the closed formula of the test, which agrees
# with the 15.89 GB of bf16 on the hub.
INTERNVL3_1B = Architecture(
    repo="OpenGVLab/InternVL3-1B-hf",
    published=938_193_024,
    width=896,
    inner=4864,
    layers=24,
    heads=14,
    key_heads=2,
    head_dim=64,
    rows=151_674,
    tokens=151_675,
)
INTERNVL2_5_4B = Architecture(
    repo="OpenGVLab/InternVL2_5-4B",
    published=3_712_637_952,
    width=2048,
    inner=11008,
    layers=36,
    heads=16,
    key_heads=2,
    head_dim=128,
    rows=151_674,
    tokens=151_674,
)
INTERNVL3_5_4B = Architecture(
    repo="OpenGVLab/InternVL3_5-4B-HF",
    published=4_732_489_216,
    width=2560,
    inner=9728,
    layers=36,
    heads=32,
    key_heads=8,
    head_dim=128,
    rows=151_936,
    tokens=151_679,
    qwen3=True,
)
INTERNVL3_8B = Architecture(
    repo="OpenGVLab/InternVL3-8B-hf",
    published=7_944_373_760,
    width=3584,
    inner=18944,
    layers=28,
    heads=28,
    key_heads=4,
    head_dim=128,
    rows=151_674,
    tokens=151_675,
)
SAM2_1_LARGE = 224_446_642
"""Parameters of SAM 2.1 hiera-L: published as 224.4 M (README of SAM 2), counted by others to the last one."""


def assemble_on_meta(
    architecture: Architecture, profile: Profile, *, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor, dict[str, Group]]:
    """What the stage `cotrain` makes of a profile before the first step, by its own code; only the loaders of files are not.

    Every parameter lies on the meta device, InternVL's in bf16 as published.
    """
    foundations, codebook = folder / "foundations", folder / "codebook"
    sam2 = official_config("sam2.1_hiera_l")
    (foundations / "sam2").mkdir(parents=True)
    (foundations / "sam2" / "config.json").write_text(json.dumps(sam2))
    params, book = profile.cotrain, profile.depth_codebook
    with init_empty_weights():
        depth = DepthCodebook(num_codes=book.num_codes, resolution=book.resolution, widths=book.widths, dim=book.dim)
    codebook.mkdir()
    (codebook / "config.json").write_text(json.dumps(depth.config))

    def vlm(*_: object, **__: object) -> InternVLForConditionalGeneration:
        with torch.device("meta"):
            return InternVLForConditionalGeneration(architecture.config()).to(torch.bfloat16)

    monkeypatch.setattr(assembly.InternVLForConditionalGeneration, "from_pretrained", vlm)
    monkeypatch.setattr(assembly.InternVLProcessor, "from_pretrained", lambda *_, **__: _processor(architecture.tokens))
    monkeypatch.setattr(assembly.DepthCodebook, "from_pretrained", lambda *_, **__: depth)
    monkeypatch.setattr(assembly, "load_sam2", lambda *_, **__: build_sam2(sam2))
    # Not `torch.device("meta")`: the constructor of SAM2's encoder reads numbers off a tensor.
    with init_empty_weights():
        model, processor = assembly.assemble(
            foundations=foundations,
            codebook=codebook,
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


def _processor(tokens: int) -> InternVLProcessor:
    """InternVL's processor with a tokenizer of so many tokens, most of which mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet]
    words += [f"\x00{number}" for number in range(tokens - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=names
    )
    size = {"height": 448, "width": 448}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size),
        tokenizer=fast,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=256,
        chat_template=TEMPLATE,
    )
