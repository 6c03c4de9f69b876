"""Attention over a packed row, each way that there is: how far it is from float32, and what it costs, forwards and backwards.

Ways: the padded batch with a mask that `transformers` would make of the same samples; one kernel a sample; one kernel for all
samples, which packed rows take on GPUs; and xformers' kernel and `transformers`' ``flash_attention_2`` where their packages are
there. The last three are for GPUs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

from perceptio_core.model.packed_attention import attend_at_once, attend_one_by_one, packed_places, takes_one_kernel
from perceptio_core.model.xformers_attention import attend_by_xformers


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Attention of one layer: heads of the queries and of the keys, channels of a head, tokens of each sample of the row."""

    heads: int
    key_heads: int
    dim: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to attend.

    Attributes:
        inputs: query, key and value as this way takes them, leaves of the graph.
        run: makes of them what the layer gives out.
        packed: the row (T, heads, dim) of what `run` made.
    """

    inputs: tuple[Tensor, ...]
    run: Callable[..., Tensor]
    packed: Callable[[Tensor], Tensor]


def compare(shape: Shape, *, device: torch.device, dtype: torch.dtype, repeats: int = 10) -> dict[str, dict[str, Any]]:
    """Error and time of every way, by its name; a way that fails has its message instead.

    The error is relative, the norm of the difference from float32 over the norm of float32, of the output and of the three
    gradients together; `max_difference` is the largest single one of the output. Milliseconds are the median of `repeats`
    forward and backward passes, and `speed` is how often they fit into the padded batch's. `first_milliseconds` are those of
    the way's first pass, with whatever a kernel prepares for lengths that it has not met.
    """
    draw = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(1, heads, sum(shape.lengths), shape.dim, generator=draw).to(device, dtype)
        for heads in (shape.heads, shape.key_heads, shape.key_heads)
    ]
    gradient = torch.randn(sum(shape.lengths), shape.heads, shape.dim, generator=draw).to(device)
    exact = _leaves([row.float() for row in rows])
    reference = _results(
        Way(inputs=exact, run=partial(attend_one_by_one, lengths=list(shape.lengths), dropout=0.0, scaling=None), packed=_row),
        gradient,
    )
    found: dict[str, dict[str, Any]] = {}
    for name, make in _ways(shape, rows):
        try:
            way = make()
            started = now(device)
            results = _results(way, gradient)
            found[name] = {
                "first_milliseconds": 1000 * (now(device) - started),
                "error": _distance(results[:1], reference[:1]),
                "gradient_error": _distance(results[1:], reference[1:]),
                "max_difference": float((results[0].float() - reference[0]).abs().max()),
                "milliseconds": _milliseconds(way, device=device, repeats=repeats),
            }
        except Exception as error:  # a way that this machine cannot go must not hide the others
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
    padded = found["padded"].get("milliseconds")
    for result in found.values():
        if padded and "milliseconds" in result:
            result["speed"] = padded / result["milliseconds"]
    return found


def _ways(shape: Shape, rows: Sequence[Tensor]) -> Iterator[tuple[str, Callable[[], Way]]]:
    """The ways that this machine knows, the padded batch first."""
    lengths, groups = list(shape.lengths), shape.heads // shape.key_heads
    places = packed_places(shape.lengths, device=rows[0].device)

    def padded() -> Way:
        inputs = [pad_sequence(row[0].transpose(0, 1).split(lengths), batch_first=True).transpose(1, 2) for row in rows]
        longest = inputs[0].shape[2]
        there_BT = torch.arange(longest, device=rows[0].device) < torch.tensor(lengths, device=rows[0].device)[:, None]
        causal_TT = torch.ones(longest, longest, dtype=torch.bool, device=rows[0].device).tril()
        mask = (causal_TT & there_BT[:, None]).unsqueeze(1)
        layer = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
        return Way(
            inputs=_leaves(inputs),
            run=lambda *qkv: sdpa_attention_forward(layer, *qkv, mask)[0],
            packed=lambda attended_BTHC: attended_BTHC[there_BT],
        )

    def packed_way(run: Callable[..., Tensor]) -> Way:
        return Way(inputs=_leaves(rows), run=run, packed=_row)

    yield "padded", padded
    yield (
        "one kernel a sample",
        lambda: packed_way(partial(attend_one_by_one, lengths=lengths, dropout=0.0, scaling=None)),
    )
    if takes_one_kernel(rows[2]):
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=rows[2].device)
        yield (
            "one kernel",
            lambda: packed_way(partial(attend_at_once, bounds=bounds, longest=max(lengths), scaling=None)),
        )
    if rows[0].is_cuda and find_spec("xformers"):
        yield "xformers", lambda: packed_way(partial(attend_by_xformers, lengths=lengths, dropout=0.0, scaling=None))
    if rows[0].is_cuda and is_flash_attn_2_available():
        layer = SimpleNamespace(is_causal=True, config=SimpleNamespace(_attn_implementation="flash_attention_2"))
        yield "flash_attention_2", lambda: packed_way(lambda *qkv: flash_attention_forward(layer, *qkv, None, **places)[0])


def _leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def _row(tensor: Tensor) -> Tensor:
    """(T, heads, dim) of (1, T, heads, dim)."""
    return tensor[0]


def _results(way: Way, gradient_THC: Tensor) -> list[Tensor]:
    """The output as a row, and the gradients of the three inputs as (T, heads, dim)."""
    for leaf in way.inputs:
        leaf.grad = None
    output = way.packed(way.run(*way.inputs))
    output.backward(gradient_THC.to(output.dtype))
    gradients = [leaf.grad for leaf in way.inputs if leaf.grad is not None]
    rows = [way.packed(gradient.transpose(1, 2)) for gradient in gradients]
    return [output.detach(), *rows]


def _distance(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of `those`."""
    difference = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(these, those, strict=True))
    return float((difference / sum(float(b.float().square().sum()) for b in those)) ** 0.5)


def _milliseconds(way: Way, *, device: torch.device, repeats: int) -> float:
    taken = []
    output = way.run(*way.inputs)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    for _ in range(repeats):
        for leaf in way.inputs:
            leaf.grad = None
        started = now(device)
        way.run(*way.inputs).backward(gradient)
        taken.append(1000 * (now(device) - started))
    return statistics.median(taken)


def now(device: torch.device) -> float:
    """Seconds on a clock, when all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
