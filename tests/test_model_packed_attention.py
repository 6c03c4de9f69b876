"""Packed rows on GPUs: which kernel takes them, what it is told, and that all ways give the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.attention import Shape, compare
from perceptio_core.model import packed_attention as module
from perceptio_core.model.packed_attention import attend_at_once, attend_one_by_one, packed_attention, packed_places
from tiny import tiny_perceptio, tiny_sample

LENGTHS = (3, 1, 5)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def row(heads: int, *, dim: int = 16, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Tensor:
    return torch.randn(1, heads, sum(lengths), dim, generator=torch.Generator().manual_seed(seed))


def under_a_mask(
    query_THC: Tensor,
    key_THC: Tensor,
    value_THC: Tensor,
    bounds_q: Tensor,
    bounds_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> Tensor:
    """What torch documents of `varlen_attn`, in float64 and with the whole mask."""
    assert query_THC.shape == key_THC.shape == value_THC.shape
    assert query_THC.dtype == key_THC.dtype == value_THC.dtype
    assert bounds_q.dtype == bounds_k.dtype == torch.int32
    assert window_size == (-1, 0)
    lengths = bounds_q.diff().tolist()
    assert torch.equal(bounds_q, bounds_k)
    assert longest_q == longest_k == max(lengths)
    q, k, v = (tensor.double().transpose(0, 1) for tensor in (query_THC, key_THC, value_THC))
    mask = torch.block_diag(*[torch.ones(n, n).tril() for n in lengths]) == 0
    scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    return (scores.masked_fill(mask, -torch.inf).softmax(-1) @ v).transpose(0, 1).to(value_THC.dtype)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_the_one_kernel_is_told_the_same_as_the_many(
    heads: int, key_heads: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "varlen_attn", under_a_mask)
    query, key, value = row(heads, seed=0), row(key_heads, seed=1), row(key_heads, seed=2)
    bounds = packed_places(LENGTHS, device=query.device)["cu_seq_lens_q"]
    assert isinstance(bounds, Tensor)
    at_once = attend_at_once(query, key, value, bounds, longest=max(LENGTHS), scaling=scaling)
    one_by_one = attend_one_by_one(query, key, value, list(LENGTHS), dropout=0.0, scaling=scaling)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)


def test_the_one_kernel_computes_in_the_precision_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated queries and keys may be float32 beside values in bf16; the kernel takes one kind."""
    monkeypatch.setattr(module, "varlen_attn", under_a_mask)
    monkeypatch.setattr(module, "takes_one_kernel", lambda value: value.dtype == torch.bfloat16)
    query, key, value = row(4, seed=0), row(2, seed=1), row(2, seed=2).bfloat16()
    places = packed_places(LENGTHS, device=query.device)
    attended, _ = packed_attention(torch.nn.Module(), query, key, value, None, **places)  # type: ignore[arg-type]
    assert attended.dtype == torch.float32
    exact = attend_one_by_one(query, key, value.float(), list(LENGTHS), dropout=0.0, scaling=None)
    torch.testing.assert_close(attended, exact, rtol=0, atol=0.05)


def test_dropout_on_the_weights_is_for_the_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "varlen_attn", None)
    monkeypatch.setattr(module, "takes_one_kernel", lambda _: True)
    places = packed_places(LENGTHS, device=torch.device("cpu"))
    attended, _ = packed_attention(torch.nn.Module(), row(2), row(2), row(2), None, dropout=0.5, **places)  # type: ignore[arg-type]
    assert attended.isfinite().all()


def test_cpus_take_the_many() -> None:
    assert not module.takes_one_kernel(row(2).bfloat16())


@needs_gpu
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(14, 2, 64), (28, 4, 128), (32, 8, 128)])
def test_all_ways_are_equal_on_gpus(heads: int, key_heads: int, dim: int) -> None:
    """bf16 rounds to 2^-9; the bound is a few times that. flash_attention_2 takes part where it is installed."""
    shape = Shape(heads=heads, key_heads=key_heads, dim=dim, lengths=(700, 1, 129, 64, 300))
    ways = compare(shape, device=torch.device("cuda"), dtype=torch.bfloat16, repeats=1)
    assert {"padded", "one kernel a sample", "one kernel"} <= set(ways)
    for name, result in ways.items():
        assert "failed" not in result, (name, result)
        assert result["error"] < 0.01, (name, result)
        assert result["gradient_error"] < 0.02, (name, result)


@needs_gpu
def test_losses_and_gradients_are_the_same_by_one_kernel_and_by_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_perceptio(tmp_path)
    model.cuda().eval()
    batch = processor.collate([tiny_sample(number, masks=1, depth=True) for number in range(3)]).to("cuda")
    results = []
    for one_kernel in (True, False):
        if not one_kernel:
            monkeypatch.setattr(module, "takes_one_kernel", lambda _: False)
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cuda", torch.bfloat16):
            losses = model(batch)
        losses["total"].backward()
        weight = model.vlm.model.language_model.layers[0].self_attn.q_proj.weight
        assert weight.grad is not None
        results.append(({name: loss.detach() for name, loss in losses.items()}, weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0.02, atol=0.01)
    distance = (results[0][1] - results[1][1]).norm() / results[1][1].norm()
    assert distance < 0.05
