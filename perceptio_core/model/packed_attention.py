"""Attention over samples packed into one row: each token sees the earlier tokens of its own sample and nothing else.

Registered with `transformers` under the name `PACKED`. The mask of a row of T tokens, T x T, is never built: the samples are
attended to one after the other, each with the causal kernel of torch. Called without the lengths of the samples, as `generate`
does, it is `transformers`' own ``sdpa``.

The peer is torch's one kernel for sequences of various lengths, `varlen_attn`. Milliseconds of a layer, forwards and backwards,
in bf16 on one H200 with torch 2.11 (`benchmarks.attention`; the table is in ``docs/results.md``):

====================================  ==========  ==========  =============
row                                   a sample a  one kernel  padded batch
                                      time        for all     under a mask
====================================  ==========  ==========  =============
1B, 2 samples of 3700 tokens          0.95        1.47        2.13
1B, 14 samples of 380 to 3700 tokens  3.10        2.91        11.85
8B, 2 samples                         1.92        3.25        5.81
8B, 14 samples                        6.32        9.07        38.10
====================================  ==========  ==========  =============

`varlen_attn` is FlashAttention-2 for causal rows, while torch prefers cuDNN's kernel for single samples on Hopper. What a loop
costs in launches grows with the number of samples: rows of many short ones, which may turn the order, were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "perceptio_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sample_lengths: Sequence[int] | None = None,
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
        sample_lengths: tokens of each sample in the order of the row, as they were given to the language model's forward;
            numbers, not a tensor, for which every layer would wait. None for an unpacked call.
        dropout: on the attention weights, in [0, 1).
        scaling: of the scores; dim ** -0.5 if None.
        **kwargs: of unpacked calls.

    Returns:
        (B, T, heads, dim), and None in the place of the attention weights.
    """
    dtype, on_cpu = query.dtype, query.device.type == "cpu"
    # Rotated by float32 angles, queries and keys are float32 beside values in 16 bit. On CPUs torch's kernel takes twice as
    # long in bf16 as in float32.
    if value.dtype in (torch.bfloat16, torch.float16):
        query, key, value = (tensor.to(torch.float32 if on_cpu else value.dtype) for tensor in (query, key, value))
    exact = torch.autocast("cpu", enabled=False) if on_cpu else nullcontext()
    with exact:
        if sample_lengths is None:
            attended: Tensor = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )[0]
        else:
            attended = attend_one_by_one(query, key, value, sample_lengths, dropout=dropout, scaling=scaling)
    return attended.to(dtype), None


def attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, dropout: float, scaling: float | None
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
    groups, parts = query.shape[1] // key.shape[1], list(lengths)
    samples = zip(
        query.split(parts, dim=2),
        repeat_kv(key, groups).split(parts, dim=2),
        repeat_kv(value, groups).split(parts, dim=2),
        strict=True,
    )
    attended = [F.scaled_dot_product_attention(*sample, dropout_p=dropout, scale=scaling, is_causal=True) for sample in samples]
    return torch.cat(attended, dim=2).transpose(1, 2)


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """`sdpa`'s mask where padding makes one necessary; none for a packed row, which comes without padding."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _mask)
