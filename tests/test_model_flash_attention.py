"""`transformers`' ``flash_attention_2`` under Perceptio, with functions of torch in the place of the package's kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, modeling_utils

from perceptio_core.model.answering import Generated
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.packed_attention import PACKED
from perceptio_core.model.processing import PerceptioProcessor
from tiny import MASK_TOLERANCE, lively, telling_masks, tiny_perceptio, tiny_sample


@dataclass
class Kernels:
    """What the package flash-attn documents of its functions, in float64 and one sequence at a time.

    Attributes:
        causal: of each causal call, the lengths of the queries' sequences.
    """

    causal: list[list[int]] = field(default_factory=list)

    def varlen(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """(T, heads, dim) each; the causal mask of a sequence ends in its lower right corner."""
        lengths_q, lengths_k = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        assert (max_seqlen_q, max_seqlen_k, dropout_p) == (max(lengths_q), max(lengths_k), 0)
        assert (sum(lengths_q), sum(lengths_k)) == (len(q), len(k))
        if causal:
            self.causal.append(lengths_q)
        groups = q.shape[1] // k.shape[1]
        rows = []
        for n, m, *one in zip(lengths_q, lengths_k, q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True):
            q_HTC, k_HTC, v_HTC = (x.double().transpose(0, 1) for x in one)
            scores = q_HTC @ k_HTC.repeat_interleave(groups, 0).mT * (softmax_scale or q.shape[-1] ** -0.5)
            if causal:
                scores = scores.masked_fill(torch.ones(n, m).tril(m - n) == 0, -torch.inf)
            rows.append((scores.softmax(-1) @ v_HTC.repeat_interleave(groups, 0)).transpose(0, 1).to(q.dtype))
        return torch.cat(rows)

    def dense(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """(B, T, heads, dim) each."""
        flat_q, flat_k, flat_v = (x.flatten(0, 1) for x in (q, k, v))
        bounds_q, bounds_k = (torch.arange(len(x) + 1) * x.shape[1] for x in (q, k))
        longest = q.shape[1], k.shape[1]
        return self.varlen(flat_q, flat_k, flat_v, bounds_q, bounds_k, *longest, dropout_p, softmax_scale, causal).view(q.shape)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    made = Kernels()
    process = flash._lazy_define_process_function(made.varlen)
    loaded = (made.dense, made.varlen, None, flash._pad_input, flash._unpad_input), (process, process)
    for module in (flash, modeling_utils):
        monkeypatch.setattr(module, "lazy_import_flash_attention", lambda *_, **__: loaded)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    return made


@pytest.fixture
def parts(tmp_path: Path) -> tuple[PerceptioForConditionalGeneration, PerceptioProcessor]:
    model, processor = tiny_perceptio(tmp_path, max_tiles=4, tied=False)
    return lively(model).eval(), processor


def losses_and_gradients(
    model: PerceptioForConditionalGeneration, processor: PerceptioProcessor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    batch = processor.collate([tiny_sample(0, masks=1, depth=True), tiny_sample(1, masks=0, depth=False, turns=2)])
    model.zero_grad()
    torch.manual_seed(0)
    losses = model(batch)
    losses["total"].backward()
    gradients = {name: p.grad.clone() for name, p in model.vlm.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def test_a_packed_row_is_told_to_flash_attention_sample_by_sample(
    parts: tuple[PerceptioForConditionalGeneration, PerceptioProcessor], kernels: Kernels
) -> None:
    model, processor = parts
    losses, gradients = losses_and_gradients(model, processor)
    lengths = processor.collate([tiny_sample(0, masks=1, depth=True), tiny_sample(1, masks=0, depth=False, turns=2)]).lengths
    for name in ("flash_attention_2", "eager", "sdpa"):
        model.vlm.set_attn_implementation(name)
        others, other_gradients = losses_and_gradients(model, processor)
        torch.testing.assert_close(others, losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(other_gradients, gradients, rtol=1e-3, atol=1e-5)
    assert kernels.causal == [list(lengths)] * 2, "a call a layer, and none for rows that run into each other"


@pytest.mark.usefixtures("kernels")
def test_a_checkpoint_is_loaded_with_the_attention_that_is_asked_for(
    parts: tuple[PerceptioForConditionalGeneration, PerceptioProcessor], tmp_path: Path
) -> None:
    parts[0].save_pretrained(tmp_path / "saved")
    for wanted, found in ((None, PACKED), ("sdpa", PACKED), ("eager", "eager"), ("flash_attention_2", "flash_attention_2")):
        model = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "saved", attn_implementation=wanted)
        parts_of_it = model.vlm.config, model.vlm.config.text_config, model.vlm.config.vision_config
        assert {config._attn_implementation for config in parts_of_it} == {found}


def test_answers_are_the_same_by_flash_attention(
    parts: tuple[PerceptioForConditionalGeneration, PerceptioProcessor], kernels: Kernels
) -> None:
    """Prompts of various lengths, padded left, and a cache with holes; tokens and masks are those of each alone without it."""
    model, processor = parts
    model.vlm.double()
    draw = np.random.default_rng(1)
    pictures = [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in [(32, 32), (32, 64), (80, 80)]]
    questions = ["yes", "Which point is the closest?", "no"]

    def answers(chosen: slice) -> list[Generated]:
        prompts = processor.prompts(pictures[chosen], questions[chosen])
        return model.answer(prompts, segment=True, depth=True, max_new_tokens=5)

    expected = [answer for number in range(3) for answer in answers(slice(number, number + 1))]
    model.set_attn_implementation("flash_attention_2")
    with telling_masks(model):
        found = answers(slice(3))
    for answer, alone in zip(found, expected, strict=True):
        assert answer.ids == alone.ids
        for mask, other in zip(answer.masks, alone.masks, strict=True):
            assert (mask != other).mean() < MASK_TOLERANCE
    layers = model.vlm.config.text_config.num_hidden_layers
    assert len(set(kernels.causal[0])) == 3, "three prompts"
    assert any(len(set(lengths)) > 1 for lengths in kernels.causal[layers:]), "rows that read different numbers of tokens"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("xformers", r'attn_implementation="xformers"` is not supported\. The only possible arguments are'),
        ("flash_attention_2", "FlashAttention2 has been toggled on, but it cannot be used"),
    ],
)
def test_what_is_unknown_or_not_installed_is_refused_by_name(
    parts: tuple[PerceptioForConditionalGeneration, PerceptioProcessor], name: str, told: str
) -> None:
    if name == "flash_attention_2" and flash.is_flash_attn_2_available():
        pytest.skip("flash-attn is installed")
    with pytest.raises((ValueError, ImportError), match=told):
        parts[0].set_attn_implementation(name)
