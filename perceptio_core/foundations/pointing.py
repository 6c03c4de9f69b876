"""A loss on attention for the language phase (ours): an answer looks at the names in the question, then at what they name.

A small language model that starts from nothing answers from the text alone for thousands of steps before it finds that a
word of the question can be looked up among the image tokens. This loss tells some attention heads where to look, at every token
that predicts a part of an answer. Heads of one layer look at the words of the names in the question: a marker's letter, a
cell's two numbers, material, colour and noun. Heads of the next layer look at the patches that show what is named. The picture
is read last, where the answer is written: what is read at the name and handed on from there arrives too faint to be learned.
Where the answer stands in a map, the map's word for the square is read last, and each word of a map has a head that looks at
its own square.

Captions with boxes or masks give a real InternVL the same. The loss speaks of places in the picture only, and nothing of it is
kept but the trained weights.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from perceptio_core.data.shards.markers import Marker
from perceptio_core.scenes.expressions import SHAPE_OF_NOUN, Phrase
from perceptio_core.scenes.view import GRID, View
from perceptio_core.scenes.world import COLORS, MATERIALS

GATHERING, LOOKING, CHOOSING = 1, 2, 3  # layers: first the words of the question, then what they name, then what is meant
HEADS = range(3)  # that are taught in each
READING_HEADS = range(5, 6)  # that are taught in LOOKING what square of the picture a word of a map stands for
COVERED = 0.25  # share of a patch that something covers if the patch shows it
_NAMES = re.compile(
    r"(?:\bmarker|,|\bor) (?P<letter>[A-E])\b|\((?P<column>\d), (?P<row>\d)\)"
    rf"|(?:\b(?P<material>{'|'.join(MATERIALS)}) )?(?:\b(?P<color>{'|'.join(COLORS)}) )?"
    rf"\b(?P<noun>{'|'.join(SHAPE_OF_NOUN)})(?:e?s)?\b"
)


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """`words`: begin and end, in the question, of each word of a name; `patches` (GRID * GRID,) bool: those that show what is
    named.
    """

    words: tuple[tuple[int, int], ...]
    patches: np.ndarray


def pointers(question: str, *, view: View, instances_HW: np.ndarray, markers: list[Marker]) -> list[Pointer]:
    """Every name in a question that something in the picture bears."""
    found = []
    for match in _NAMES.finditer(question):
        patches_PP = np.zeros((GRID, GRID), bool)
        if match["letter"]:
            for marker in markers:
                if marker.letter == match["letter"]:
                    patches_PP[marker.y * GRID // len(instances_HW), marker.x * GRID // instances_HW.shape[1]] = True
        elif match["column"]:
            patches_PP[int(match["row"]), int(match["column"])] = True
        else:
            phrase = Phrase(noun=match["noun"], color=match["color"], material=match["material"])
            if phrase == Phrase(noun="object"):
                continue  # "which object", "the object at marker A": the word alone names nothing
            fitting = [seen.instance for seen in view.objects if phrase.fits(seen)]
            side = len(instances_HW) // GRID
            for instance in fitting:
                share_PP = (instances_HW == instance).reshape(GRID, side, GRID, side).mean(axis=(1, 3))
                patches_PP |= share_PP >= min(COVERED, share_PP.max())
        if patches_PP.any():
            words = tuple(match.span(name) for name, text in match.groupdict().items() if text)
            found.append(Pointer(words=words, patches=patches_PP.reshape(-1)))
    return found


class Attention(NamedTuple):
    """M tokens and what each should attend to: `row_M` which sample, `token_M` where in it, `wanted_MT` bool."""

    row_M: Tensor
    token_M: Tensor
    wanted_MT: Tensor


def pointing_loss(
    model: InternVLForConditionalGeneration, hidden_BTD: Tensor, wanted: Attention, *, layer: int, heads: range = HEADS
) -> tuple[Tensor, Tensor]:
    """Mean of -ln(attention on what is wanted) over tokens and taught heads, and that attention itself.

    Args:
        model: its language model's layer of number `layer` is taught.
        hidden_BTD: input of that layer.
        wanted: tokens and their targets.
        layer: from 0.
        heads: those that are taught.
    """
    text = model.model.language_model
    block = text.layers[layer]
    attention = block.self_attn
    normed_BTD = block.input_layernorm(hidden_BTD)
    shape = (*normed_BTD.shape[:2], -1, attention.head_dim)
    queries, keys = (projection(normed_BTD).view(shape).transpose(1, 2) for projection in (attention.q_proj, attention.k_proj))
    cos, sin = text.rotary_emb(normed_BTD, torch.arange(shape[1], device=normed_BTD.device)[None])
    queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
    taught = slice(heads.start, heads.stop)
    scores_BHTT = queries[:, taught].float() @ keys[:, taught].float().transpose(-1, -2) * attention.scaling
    scores_MHT = scores_BHTT[wanted.row_M, :, wanted.token_M]
    later_MT = torch.arange(shape[1], device=normed_BTD.device)[None] > wanted.token_M[:, None]
    log_attention_MHT = scores_MHT.masked_fill(later_MT[:, None], -torch.inf).log_softmax(-1)
    right_MH = log_attention_MHT.masked_fill(~wanted.wanted_MT[:, None], -torch.inf).logsumexp(-1)
    return -right_MH.mean(), right_MH.detach().exp().mean()
