"""Ways to attend to a packed row: that all give the same, on GPUs too, and what torch's one kernel is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import attention
from benchmarks.attention import Shape, compare
from perceptio_core.model.packed_attention import attend_one_by_one

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
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores.masked_fill(mask, -torch.inf).softmax(-1) @ v).transpose(0, 1).to(value_THC.dtype)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_the_one_kernel_is_told_the_same_as_the_many(heads: int, key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", under_a_mask)
    query, key, value = row(heads, seed=0), row(key_heads, seed=1), row(key_heads, seed=2)
    at_once = attention._varlen(query, key, value, bounds=torch.tensor([0, 3, 4, 9], dtype=torch.int32), longest=5)
    one_by_one = attend_one_by_one(query, key, value, LENGTHS, dropout=0.0, scaling=None)
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)


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
