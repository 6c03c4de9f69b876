"""Tiny models of random weights in the libraries' own formats, for tests of everything above them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.internvl import InternVLVisionConfig

from benchmarks.architectures import SPECIAL, TEMPLATE
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.grammar import PAPER_ORDER, Span
from perceptio_core.model.assembly import assemble
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.segmentation.sam2 import build_sam2, mini_config, save_sam2

CORPUS = ["Which point is the closest to the camera?", "Please segment the small red box left of the ball.", "yes no (A) (B)"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with InternVL's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=names
    )


def tiny_internvl(path: Path, *, hidden: int = 32, layers: int = 2, tied: bool = True, seed: int = 0, size: int = 32) -> Path:
    """Write an InternVL with `size`-pixel images, (size / 16)^2 image tokens and random weights to `path`; returns it."""
    tokenizer = tiny_tokenizer()
    heads = max(1, hidden // 16)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden * 4,
            image_size=size,
            patch_size=16,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 4,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(size // 16) ** 2,
        downsample_ratio=1.0,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        InternVLForConditionalGeneration(config).save_pretrained(path)
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": size, "width": size}),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": size, "width": size}),
        image_seq_length=config.image_seq_length,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(path)
    return path


def tiny_foundations(path: Path, *, tied: bool = True) -> tuple[Path, Path]:
    """Write internvl/ and sam2/ to `path`/foundations and a codebook (K = 6, N = 4) to `path`/codebook; returns both."""
    foundations, codebook = path / "foundations", path / "codebook"
    tiny_internvl(foundations / "internvl", tied=tied)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_sam2(build_sam2(mini_config()), config=mini_config(), folder=foundations / "sam2")
        DepthCodebook(num_codes=6, resolution=16, widths=(4, 8, 8), dim=8).save_pretrained(codebook)
    return foundations, codebook


LOSS_WEIGHTS = {
    "llm": 1.0,
    "seg_ce": 2.0,
    "seg_dice": 0.5,
    "marker": 1.0,
    "token": 1.0,
    "count": 0.5,
    "reconstruction": 1.0,
}


def tiny_perceptio(
    path: Path, *, tied: bool = True, order: tuple[Span, ...] = PAPER_ORDER, max_tiles: int = 1, **weights: float
) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor]:
    """A fresh model on tiny foundations, and its processor; `weights` override `LOSS_WEIGHTS`."""
    foundations, codebook = tiny_foundations(path, tied=tied)
    return assemble(
        foundations=foundations,
        codebook=codebook,
        order=order,
        loss_weights=LOSS_WEIGHTS | weights,
        max_tiles=max_tiles,
        seed=0,
    )


@torch.no_grad()
def lively(model: PerceptioForConditionalGeneration) -> PerceptioForConditionalGeneration:
    """`model` with larger matrices in its InternVL and its prompt MLP, in place.

    Fresh ones are so small that every prompt has the same answer, and every [SEG] of an image the same mask.
    """
    for part in (model.vlm, model.bridge.prompt):
        for parameter in part.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model


MASK_TOLERANCE = 0.01
"""Share of a mask's pixels, at its border, that rounding may turn over."""


@contextmanager
def telling_masks(model: PerceptioForConditionalGeneration) -> Iterator[None]:
    """Masks of answers that `model` writes inside tell which state and which image they are of, or this fails.

    Each state of a batch draws another mask than every other one on the same image, and another on every other image: they
    differ in more than twice the `MASK_TOLERANCE` of their pixels, so none is taken for one that rounding has changed.
    """
    draw, pairs = model.bridge.masks, 0
    with patch.object(model.bridge, "masks", wraps=draw) as drawn:
        yield
    with torch.inference_mode():
        for call in drawn.call_args_list:
            (features,), states_MD = call.args, call.kwargs["hidden_MD"]
            indices = [torch.full((len(states_MD),), image) for image in range(len(features.embedding))]
            masks_BMhw = torch.stack([draw(features, image_index_M=index_M, hidden_MD=states_MD) > 0 for index_M in indices])
            for masks in (*masks_BMhw, *masks_BMhw.transpose(0, 1)):
                for one, other in combinations(masks, 2):
                    assert (one != other).float().mean() > 2 * MASK_TOLERANCE, "masks that are all the same would prove little"
                    pairs += 1
    assert pairs, "no batch with two masks to mix up"


@dataclass(frozen=True, kw_only=True)
class TinySample:
    """What the processor reads of a sample."""

    key: str
    image: Image.Image
    turns: list[tuple[str, str]]
    masks: list[NDArray[np.bool_]]
    mask_turns: list[int]
    depth_codes: list[int] | None


def tiny_sample(number: int, *, masks: int, depth: bool, turns: int = 1) -> TinySample:
    """A sample of noise, 40 x 48 pixels."""
    draw = np.random.default_rng(number)
    return TinySample(
        key=f"sample-{number}",
        image=Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)),
        turns=[("Which point?", "(A)"), ("yes", "no")][:turns],
        masks=[draw.random((40, 48)) > 0.5 for _ in range(masks)],
        mask_turns=[0] * masks,
        depth_codes=[int(code) for code in draw.integers(0, 6, 4)] if depth else None,
    )
