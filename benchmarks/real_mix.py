"""How long the samples of the real mix are, by the profile's task shares, COCO's pictures and the data sets' texts.

Counted: how many tiles InternVL's processor cuts pictures of COCO 2017 into (`TILES`), and the task shares of the profile.
Assumed, as there is no such file here: the lengths of the texts, in tokens of Qwen2.5, from what the data sets publish about
themselves (LLaVA, arXiv 2310.03744, table of its 665K mixture, its rows without a picture left out; RefCOCO, arXiv
1608.00272: 3.5 words an expression). The picture is most of every sample, so that these lengths weigh little. Pictures of all
sources are cut as COCO's are, though one conversation in eight is about a book cover; 13 tiles are the most of any picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TILES = {1: 9, 3: 4, 4: 1, 5: 2, 7: 64, 11: 1, 13: 75}
"""Tiles, thumbnail included, at most 12 and that -> pictures, of 156 of COCO 2017 (`tests/test_benchmarks.py` counts them)."""

TILE_TOKENS = 256
TEMPLATE = 10
"""Tokens of the chat template around a question and its answer."""

DEPTH_SPAN = 102


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Turns of a conversation, and tokens of their questions and answers: from, to, both included."""

    turns: tuple[int, int]
    question: tuple[int, int]
    answer: tuple[int, int]


CONVERSATIONS = (
    (58, Turns(turns=(3, 6), question=(8, 18), answer=(15, 60))),  # LLaVA-Instruct, conversations
    (100, Turns(turns=(1, 1), question=(8, 25), answer=(90, 220))),  # LLaVA-Instruct, descriptions and reasoning
    (310, Turns(turns=(1, 12), question=(7, 20), answer=(1, 4))),  # VQAv2, GQA, OKVQA, A-OKVQA, OCR-VQA
    (22, Turns(turns=(1, 1), question=(25, 35), answer=(10, 25))),  # TextCaps
    (134, Turns(turns=(3, 10), question=(10, 30), answer=(8, 25))),  # RefCOCO and Visual Genome as boxes
)
"""Thousands of pictures in LLaVA-665K, by the form of their conversations."""

TASKS = {
    "referring": Turns(turns=(2, 5), question=(10, 17), answer=(7, 7)),  # five expressions, where a picture has them
    "marker": Turns(turns=(3, 3), question=(20, 28), answer=(3, 5)),  # the question and two comparisons
    "depth_map": Turns(turns=(1, 1), question=(9, 9), answer=(0, 0)),
}


@dataclass(frozen=True, kw_only=True)
class Length:
    """A sample's tiles, its tokens in all, and those that are supervised: depth span, answers and ends of turns."""

    tiles: int
    tokens: int
    supervised: int


def draw_lengths(mixture: Mapping[str, float], *, count: int, seed: int) -> list[Length]:
    """So many samples of the mix, independent of one another.

    Args:
        mixture: relative weight of each task.
        count: samples.
        seed: of the draws.
    """
    draw = np.random.default_rng(seed)
    tasks, pictures = sorted(mixture), sorted(TILES)
    drawn_tasks = draw.choice(tasks, count, p=_shares([mixture[task] for task in tasks]))
    drawn_tiles = draw.choice(pictures, count, p=_shares([TILES[tiles] for tiles in pictures]))
    kinds = draw.choice(len(CONVERSATIONS), count, p=_shares([weight for weight, _ in CONVERSATIONS]))
    lengths = []
    for task, tiles, kind in zip(drawn_tasks.tolist(), drawn_tiles.tolist(), kinds.tolist(), strict=True):
        form = TASKS.get(task) or CONVERSATIONS[kind][1]
        turns = int(draw.integers(*form.turns, endpoint=True))
        question, answer = (
            int(draw.integers(*bounds, size=turns, endpoint=True).sum()) for bounds in (form.question, form.answer)
        )
        tokens = tiles * TILE_TOKENS + 2 + DEPTH_SPAN + question + answer + turns * TEMPLATE
        lengths.append(Length(tiles=tiles, tokens=tokens, supervised=DEPTH_SPAN + answer + turns))
    return lengths


def _shares(weights: list[float] | list[int]) -> np.ndarray:
    return np.asarray(weights, np.float64) / sum(weights)
