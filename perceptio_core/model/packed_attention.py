"""Attention over samples packed into one row: each token sees the earlier tokens of its own sample and nothing else.

Registered with `transformers` under the name `PACKED`. The T x T mask of a row of T tokens is never built. On GPUs that compute
in 16 bit, one call of FlashAttention-2's kernel for sequences of various lengths, which comes with torch, attends to all
samples. Elsewhere the samples are attended to one after the other, each with the causal kernel of torch. Called without the
places of the samples, as `generate` does, it is `transformers`' own ``sdpa``; so a row that is packed by its positions alone
(``position_ids`` that begin again, without `packed_places`) is one sample to it.

Why one kernel for all: on Hopper one kernel a sample is faster by 2 to 4 % of a training step (``docs/results.md``), for torch
takes cuDNN's there. But cuDNN makes a plan for each new length, forwards and backwards, which others have seen take a second
(https://github.com/modelscope/FunASR/issues/3704), and in training most samples have a length of their own. One kernel for all
plans nothing and is launched once a layer, however many samples there are.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "perceptio_packed"


def packed_places(lengths: tuple[int, ...], *, device: torch.device) -> dict[str, Tensor | int]:
    """Keyword arguments of a language model's forward that say where the samples of a packed row begin and end.

    They are those of `transformers`' flash attention, which takes packed rows by itself.

    Args:
        lengths: tokens of each sample, in the order of the row; at least one sample.
        device: of the row.
    """
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in every layer.

    Args:
        module: the attention layer.
        query: (B, heads, T, dim); B = 1 for a packed row.
        key: (B, heads of keys, T, dim).
        value: as `key`.
        attention_mask: of unpacked calls.
        cu_seq_lens_q: where the samples begin, and T; from `packed_places`. None for an unpacked call.
        max_length_q: tokens of the longest sample, from there too.
        dropout: on the attention weights, in [0, 1).
        scaling: of the scores; dim ** -0.5 if None.
        **kwargs: of unpacked calls.

    Returns:
        (B, T, heads, dim), and None in the place of the attention weights.
    """
    dtype = query.dtype
    if cu_seq_lens_q is not None and max_length_q is not None and dropout == 0 and takes_one_kernel(value):
        return attend_at_once(query, key, value, cu_seq_lens_q, longest=max_length_q, scaling=scaling).to(dtype), None
    device = query.device.type
    # On CPUs torch's kernel takes twice as long in bf16 as in float32.
    exact = torch.autocast(device, enabled=False) if device == "cpu" else nullcontext()
    # Rotated by float32 angles, queries and keys are float32 beside values in bf16.
    if device == "cpu" and value.dtype in (torch.bfloat16, torch.float16):
        query, key, value = query.float(), key.float(), value.float()
    with exact:
        if cu_seq_lens_q is None:
            attended: Tensor = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )[0]
        else:
            lengths = cu_seq_lens_q.diff().tolist()
            attended = attend_one_by_one(query, key, value, lengths, dropout=dropout, scaling=scaling)
    return attended.to(dtype), None


def takes_one_kernel(value: Tensor) -> bool:
    """Whether `attend_at_once` can do it: 16-bit numbers on a GPU with native bf16, the kind that its kernel is made for."""
    return value.is_cuda and value.dtype in (torch.bfloat16, torch.float16) and _computes_bf16()


@cache
def _computes_bf16() -> bool:
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def attend_at_once(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *, longest: int, scaling: float | None) -> Tensor:
    """Attention of a packed row in one kernel, in the precision of `value`.

    Args:
        query: (1, heads, T, dim), at most 256 wide.
        key: (1, heads of keys, T, dim).
        value: as `key`.
        bounds: int32, where the samples begin, and T.
        longest: tokens of the longest sample.
        scaling: of the scores; dim ** -0.5 if None.

    Returns:
        (1, T, heads, dim).
    """
    groups = query.shape[1] // key.shape[1]
    q_THC, k_THC, v_THC = (
        repeat_kv(tensor, repeats).to(value.dtype)[0].transpose(0, 1)
        for tensor, repeats in ((query, 1), (key, groups), (value, groups))
    )
    # A window without end to the left and of nothing to the right is the causal mask, sample by sample.
    attended: Any = varlen_attn(q_THC, k_THC, v_THC, bounds, bounds, longest, longest, scale=scaling, window_size=(-1, 0))
    row: Tensor = attended[None]
    return row


def attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], *, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of a packed row, sample by sample, on any device and in any precision.

    Args:
        query: (1, heads, T, dim).
        key: (1, heads of keys, T, dim).
        value: as `key`.
        lengths: tokens of each sample.
        dropout: on the attention weights, in [0, 1).
        scaling: of the scores; dim ** -0.5 if None.

    Returns:
        (1, T, heads, dim).
    """
    groups = query.shape[1] // key.shape[1]
    samples = zip(
        query.split(lengths, dim=2),
        repeat_kv(key, groups).split(lengths, dim=2),
        repeat_kv(value, groups).split(lengths, dim=2),
        strict=True,
    )
    attended = [F.scaled_dot_product_attention(*sample, dropout_p=dropout, scale=scaling, is_causal=True) for sample in samples]
    return torch.cat(attended, dim=2).transpose(1, 2)


def causal_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """`sdpa`'s mask, but for rows without padding or earlier keys, such as packed ones: a causal kernel needs none."""
    whole = attention_mask is None and kwargs["q_length"] == kwargs["kv_length"]
    return None if whole else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, causal_mask)
