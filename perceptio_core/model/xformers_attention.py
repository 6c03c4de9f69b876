"""Attention of packed rows by xformers: one call of its memory-efficient kernel attends to all samples.

Registered with `transformers` under the name `XFORMERS`; `PerceptioForConditionalGeneration.from_pretrained(...,
attn_implementation="perceptio_xformers")` asks for it. xformers computes on GPUs alone, and says so elsewhere. Calls without
the places of the samples, as `generate` makes them, are those of `packed_attention`; the T x T mask is not built here either.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv

from perceptio_core.model.packed_attention import causal_mask, packed_attention

XFORMERS = "perceptio_xformers"


def xformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in every layer.

    Args:
        module: the attention layer.
        query: (B, heads, T, dim); B = 1 for a packed row.
        key: (B, heads of keys, T, dim).
        value: as `key`; its dtype is the one that a packed row is computed in.
        attention_mask: of unpacked calls.
        cu_seq_lens_q: where the samples begin, and T; from `packed_attention.packed_places`. None for an unpacked call.
        dropout: on the attention weights, in [0, 1).
        scaling: of the scores; dim ** -0.5 if None.
        **kwargs: of unpacked calls.

    Returns:
        (B, T, heads, dim), and None in the place of the attention weights.

    Raises:
        ImportError: xformers is not installed.
        NotImplementedError: xformers has no kernel for the device; from xformers.
    """
    if cu_seq_lens_q is None:
        return packed_attention(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    return attend_by_xformers(query, key, value, cu_seq_lens_q.diff().tolist(), dropout=dropout, scaling=scaling), None


def attend_by_xformers(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], *, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of a packed row, each sample to itself and causally, in the precision of `value`.

    Args:
        query: (1, heads, T, dim).
        key: (1, heads of keys, T, dim).
        value: as `key`.
        lengths: tokens of each sample.
        dropout: on the attention weights, in [0, 1).
        scaling: of the scores; dim ** -0.5 if None.

    Returns:
        (1, T, heads, dim), in the dtype of `query`.
    """
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalMask

    groups = query.shape[1] // key.shape[1]
    q_1THC, k_1THC, v_1THC = (
        repeat_kv(tensor, repeats).to(value.dtype).transpose(1, 2)
        for tensor, repeats in ((query, 1), (key, groups), (value, groups))
    )
    bias = BlockDiagonalCausalMask.from_seqlens(lengths, device=query.device)
    attended: Tensor = memory_efficient_attention(q_1THC, k_1THC, v_1THC, attn_bias=bias, p=dropout, scale=scaling)
    return attended.to(query.dtype)


AttentionInterface.register(XFORMERS, xformers_attention)
AttentionMaskInterface.register(XFORMERS, causal_mask)
