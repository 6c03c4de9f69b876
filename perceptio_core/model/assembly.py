"""Puts a new Perceptio together from foundation models and a depth codebook."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from transformers import GenerationConfig, InternVLForConditionalGeneration, InternVLProcessor

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.grammar import Span
from perceptio_core.model.configuration import LOSSES, PerceptioConfig
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.segmentation.bridge import WIRINGS, SegmentationBridge, Wiring
from perceptio_core.segmentation.sam2 import load_sam2
from perceptio_core.vocabulary import Vocabulary, add_rows
from perceptio_core.weights import load_pretrained, read_metadata, read_safetensors, require_shapes

SEGMENTATION_START = "segmentation_start.safetensors"
"""File in ``internvl/`` of a base that segments already: ``seg.input`` and ``seg.output`` (D,), the rows of ``[SEG]``, and
``prompt.0.weight`` and so on, the prompt MLP. Its metadata hold `WIRING`: in which of the bridge's wirings it learned."""
WIRING = "segmentation_wiring"

END_TOKEN = "<|im_end|>"
"""What closes a turn in the chat template of every InternVL on a Qwen2.5 or InternLM2.5 language model."""


def assemble(
    *,
    foundations: Path,
    codebook: Path,
    order: Sequence[Span],
    loss_weights: Mapping[str, float],
    max_tiles: int,
    seed: int,
    code_words: Sequence[str] = (),
) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor]:
    """Join the parts; only the added token rows and the prompt MLP are new, drawn from `seed`.

    Where ``internvl/`` holds `SEGMENTATION_START`, the rows of ``[SEG]`` and the prompt MLP start from that file, and the
    bridge has the wiring that it names. The
    tokens of both spans are added whatever `order` says, so that a control has the same vocabulary as the full model.

    Args:
        foundations: folder with ``internvl/`` (model and processor) and ``sam2/``.
        codebook: folder of the depth codebook.
        order: spans that are switched on, in the order they are written.
        loss_weights: weight >= 0 of each of `LOSSES`.
        max_tiles: most tiles per image for the vision tower.
        seed: of the new weights.
        code_words: words for levels, the farthest first, between whose rows those of the depth codes start; see `add_rows`.

    Raises:
        ValueError: a loss weight is missing, unknown or negative; a word of `code_words` is not a single token of the base;
            `SEGMENTATION_START` does not fit the model; or a part's weights are not exactly those of its configuration.
    """
    start = foundations / "internvl" / SEGMENTATION_START
    model, processor = join(
        vlm=load_pretrained(InternVLForConditionalGeneration, foundations / "internvl"),
        processor=InternVLProcessor.from_pretrained(foundations / "internvl"),
        sam=load_sam2(foundations / "sam2"),
        sam2_config=json.loads((foundations / "sam2" / "config.json").read_text(encoding="utf-8")),
        codebook=DepthCodebook.from_pretrained(codebook),
        order=order,
        loss_weights=loss_weights,
        max_tiles=max_tiles,
        seed=seed,
        code_words=code_words,
        wiring=_wiring(start) if start.is_file() else "perceptio",
    )
    if start.is_file():
        _start_segmentation(model, start)
    return model, processor


def join(
    *,
    vlm: InternVLForConditionalGeneration,
    processor: InternVLProcessor,
    sam: SAM2Base,
    sam2_config: Mapping[str, Any],
    codebook: DepthCodebook,
    order: Sequence[Span],
    loss_weights: Mapping[str, float],
    max_tiles: int,
    seed: int,
    code_words: Sequence[str] = (),
    wiring: Wiring = "perceptio",
) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor]:
    """`assemble` for parts that are there already, on whatever device; what is new lies on torch's default device.

    Args:
        vlm: gets the rows of the added tokens, in place.
        processor: of `vlm`; its tokenizer gets the added tokens, in place.
        sam: built from `sam2_config`.
        sam2_config: see `PerceptioConfig`.
        codebook: the depth codebook.
        order: as `assemble` has it, and so have the others.
        loss_weights: weight >= 0 of each of `LOSSES`.
        max_tiles: most tiles per image for the vision tower.
        seed: of the new weights.
        code_words: as `assemble` has them.
        wiring: of the segmentation bridge.

    Raises:
        ValueError: a loss weight is missing, unknown or negative, or a word of `code_words` is not a single token.
    """
    if set(loss_weights) != set(LOSSES) or min(loss_weights.values()) < 0:
        raise ValueError(f"loss_weights must hold a weight >= 0 for each of {', '.join(LOSSES)}, got {dict(loss_weights)}")
    words = {word: processor.tokenizer.encode(word, add_special_tokens=False) for word in code_words}
    if longer := sorted(word for word, ids in words.items() if len(ids) != 1):
        raise ValueError(f"code_words: {', '.join(map(repr, longer))} are not single tokens of the base's tokenizer")
    vocabulary = Vocabulary.add_to(processor.tokenizer, num_codes=codebook.num_codes)
    add_rows(
        vlm,
        vocabulary=vocabulary,
        vocabulary_size=len(processor.tokenizer),
        code_word_ids=[ids[0] for ids in words.values()],
        seed=seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = vlm.config.text_config.hidden_size
        bridge = SegmentationBridge(sam=sam, hidden_dim=hidden, wiring=wiring)
    config = PerceptioConfig(
        vlm_config=vlm.config,
        sam2_config=dict(sam2_config),
        codebook_config=codebook.config,
        token_ids={name: getattr(vocabulary, name) for name in vocabulary.__dataclass_fields__},
        end_token_id=processor.tokenizer.convert_tokens_to_ids(END_TOKEN),
        depth_tokens=codebook.grid**2,
        order=list(order),
        loss_weights=dict(loss_weights),
        max_tiles=max_tiles,
        segmentation_wiring=wiring,
        # A composite configuration overwrites its parts' choice with its own, which would be none.
        attn_implementation=vlm.config._attn_implementation,
    )
    model = PerceptioForConditionalGeneration(config, vlm=vlm, bridge=bridge, codebook=codebook)
    model.fresh_prompt = True
    processor = PerceptioProcessor.of(processor, config=config)
    # Image placeholders stand in prompts and are never written.
    model.generation_config = GenerationConfig(
        eos_token_id=config.end_token_id, pad_token_id=processor.pad_id, suppress_tokens=sorted(processor.image_token_ids)
    )
    return model, processor


def _wiring(path: Path) -> Wiring:
    told = read_metadata(path).get(WIRING)
    for wiring in WIRINGS:
        if wiring == told:
            return wiring
    raise ValueError(f"{path}: its metadata name {WIRING} {told!r}; allowed are {', '.join(WIRINGS)}")


@torch.no_grad()
def _start_segmentation(model: PerceptioForConditionalGeneration, path: Path) -> None:
    seg = model.config.vocabulary.seg
    places = {f"prompt.{name}": value for name, value in model.bridge.prompt.state_dict().items()}
    places["seg.output"] = model.vlm.get_output_embeddings().weight[seg]
    places["seg.input"] = model.vlm.get_input_embeddings().weight[seg]
    tensors = read_safetensors(path)
    require_shapes(tensors, expected={key: tuple(place.shape) for key, place in places.items()}, source=path)
    for key, place in places.items():
        place.copy_(tensors[key])
    model.fresh_prompt = False
