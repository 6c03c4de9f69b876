"""Packed rows by xformers: what its kernel is told, and that the model's losses and gradients are sdpa's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.packed_attention import attend_one_by_one
from perceptio_core.model.xformers_attention import XFORMERS, attend_by_xformers, xformers_attention
from tiny import lively, tiny_perceptio, tiny_sample

ops = pytest.importorskip("xformers.ops", reason="xformers has wheels for Linux on x86_64")
attn_bias = pytest.importorskip("xformers.ops.fmha.attn_bias")
LENGTHS = [3, 1, 5]
on_gpu = torch.cuda.is_available()


class Kernel:
    """What xformers documents of `memory_efficient_attention`, with its own mask written out, in float64.

    Attributes:
        lengths: samples of each call.
    """

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, attn_bias: Any, p: float, scale: float | None) -> Tensor:
        assert query.shape == key.shape == value.shape
        assert query.dtype == key.dtype == value.dtype
        assert type(attn_bias).__name__ == "BlockDiagonalCausalMask"
        assert p == 0
        self.lengths.append(attn_bias.q_seqinfo.seqstart.diff().tolist())
        tokens = query.shape[1]
        mask_TT = attn_bias.materialize((1, 1, tokens, tokens), dtype=torch.float64)[0, 0]
        q, k, v = (tensor.double().transpose(1, 2) for tensor in (query, key, value))
        weights = (q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5) + mask_TT).softmax(-1)
        return (weights @ v).transpose(1, 2).to(value.dtype)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(ops, "memory_efficient_attention", made)
    return made


def row(heads: int, seed: int) -> Tensor:
    return torch.randn(1, heads, sum(LENGTHS), 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_each_sample_attends_to_itself(heads: int, key_heads: int, scaling: float | None, kernel: Kernel) -> None:
    query, key, value = row(heads, 0), row(key_heads, 1), row(key_heads, 2)
    found = attend_by_xformers(query, key, value, LENGTHS, dropout=0.0, scaling=scaling)
    expected = attend_one_by_one(query, key, value, LENGTHS, dropout=0.0, scaling=scaling)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert kernel.lengths == [LENGTHS]


@pytest.mark.usefixtures("kernel")
def test_it_computes_in_the_precision_of_the_values() -> None:
    query, key, value = row(4, 0), row(2, 1), row(2, 2).bfloat16()
    found = attend_by_xformers(query, key, value, LENGTHS, dropout=0.0, scaling=None)
    assert found.dtype == torch.float32
    exact = attend_one_by_one(query, key, value.float(), LENGTHS, dropout=0.0, scaling=None)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)


def test_a_checkpoint_loaded_with_it_has_the_losses_and_gradients_of_sdpa(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = tiny_perceptio(tmp_path / "made", max_tiles=4, tied=False)
    lively(model).save_pretrained(tmp_path / "saved")
    batch = processor.collate([tiny_sample(0, masks=1, depth=True), tiny_sample(1, masks=0, depth=False, turns=2)])
    masks = []

    def watched(*given: Any, **more: Any) -> tuple[Tensor, None]:
        masks.append((given[4], more.get("cu_seq_lens_q") is not None))
        return xformers_attention(*given, **more)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, XFORMERS, watched)
    results = []
    for name in ("sdpa", XFORMERS):
        loaded = PerceptioForConditionalGeneration.from_pretrained(tmp_path / "saved", attn_implementation=name).eval()
        torch.manual_seed(0)
        losses = loaded(batch)
        losses["total"].backward()
        gradients = {key: parameter.grad for key, parameter in loaded.vlm.named_parameters() if parameter.grad is not None}
        results.append(({key: loss.detach() for key, loss in losses.items()}, gradients))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)
    assert kernel.lengths == [list(batch.lengths)] * loaded.vlm.config.text_config.num_hidden_layers, "a call a layer"
    assert [mask for mask, packed in masks if packed] == [None] * len(kernel.lengths), "a packed row's mask is not built"
    prompts = processor.prompts([tiny_sample(2, masks=0, depth=False).image], ["yes"])
    assert loaded.answer(prompts, segment=False, depth=False, max_new_tokens=3)


@pytest.mark.skipif(on_gpu, reason="GPUs have kernels")
def test_a_cpu_is_refused_by_xformers_itself() -> None:
    with pytest.raises(NotImplementedError, match="No operator found for `memory_efficient_attention"):
        attend_by_xformers(row(4, 0), row(4, 1), row(4, 2), LENGTHS, dropout=0.0, scaling=None)


@pytest.mark.skipif(not on_gpu, reason="needs a CUDA device")
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(14, 2, 64), (28, 4, 128)])
def test_its_kernel_is_equal_to_sdpa_on_gpus(heads: int, key_heads: int, dim: int) -> None:
    from benchmarks.attention import Shape, compare

    shape = Shape(heads=heads, key_heads=key_heads, dim=dim, lengths=(700, 1, 129, 64, 300))
    found = compare(shape, device=torch.device("cuda"), dtype=torch.bfloat16, repeats=1)["xformers"]
    assert found["error"] < 0.01, found
    assert found["gradient_error"] < 0.02, found
