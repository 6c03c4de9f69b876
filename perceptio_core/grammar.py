"""The grammar of an answer: perception spans in a fixed order, then text, then the end token.

    answer := span* text end          span order: segmentation, depth by default (the paper's order); a parameter
    segmentation := [SEG]+            one per object
    depth := <depth_start> <depth_i>*N <depth_end>

Data, losses and decoding share it: `Grammar.pieces` says what is written, each piece with its `Role`; `Grammar.parse`
reads it back; `perceptio_core.model.decoding` admits nothing else. Each span may be switched off (for ablations and the
control) and each may be absent from a single answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from perceptio_core.vocabulary import DEPTH_END, DEPTH_START, SEG, Vocabulary, depth_token

Span = Literal["segmentation", "depth"]
PAPER_ORDER: tuple[Span, ...] = ("segmentation", "depth")


class Role(IntEnum):
    """What a token of a training sequence is. Everything but PROMPT is supervised."""

    PROMPT = 0
    SEG = 1
    DEPTH_START = 2
    DEPTH_CODE = 3
    DEPTH_END = 4
    ANSWER = 5
    END = 6


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """An answer taken apart.

    Attributes:
        masks: number of [SEG] tokens.
        depth_codes: the N codes in [0, K), row-major; None without a complete depth span.
        text_ids: the ids of the text, without perception and end tokens.
        ended: whether the end token was reached.
    """

    masks: int
    depth_codes: tuple[int, ...] | None
    text_ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Which spans an answer may hold, in which order.

    Attributes:
        order: the spans that are switched on, first one first; any subset of "segmentation" and "depth" in any order.
        depth_tokens: N >= 1, codes per depth span.
    """

    order: tuple[Span, ...] = PAPER_ORDER
    depth_tokens: int

    def __post_init__(self) -> None:
        if set(self.order) - set(PAPER_ORDER) or len(set(self.order)) != len(self.order):
            raise ValueError(f"order may hold each of {PAPER_ORDER} at most once, got {self.order}")
        if self.depth_tokens < 1:
            raise ValueError(f"depth_tokens must be at least 1, got {self.depth_tokens}")

    def pieces(self, *, masks: int, depth_codes: Sequence[int] | None, answer: str) -> list[tuple[Role, str]]:
        """What the assistant writes, as (role, text) pieces without the end token.

        Args:
            masks: number of objects to segment; ignored when segmentation is switched off.
            depth_codes: the N codes of the image's depth map, or None; ignored when depth is switched off.
            answer: text; may be empty.

        Raises:
            ValueError: the number of depth codes is not N.
        """
        pieces: list[tuple[Role, str]] = []
        for span in self.order:
            if span == "segmentation":
                pieces += [(Role.SEG, SEG)] * masks
            elif depth_codes is not None:
                if len(depth_codes) != self.depth_tokens:
                    raise ValueError(f"a depth span holds {self.depth_tokens} codes, got {len(depth_codes)}")
                pieces.append((Role.DEPTH_START, DEPTH_START))
                pieces += [(Role.DEPTH_CODE, depth_token(int(code))) for code in depth_codes]
                pieces.append((Role.DEPTH_END, DEPTH_END))
        if answer:
            pieces.append((Role.ANSWER, answer))
        return pieces

    def render(self, *, masks: int, depth_codes: Sequence[int] | None, answer: str) -> str:
        """The same as one string."""
        return "".join(text for _, text in self.pieces(masks=masks, depth_codes=depth_codes, answer=answer))

    def parse(self, ids: Sequence[int], *, vocabulary: Vocabulary, end_id: int) -> Parsed:
        """Take a generated answer apart; tokens after the first end token (padding) are ignored.

        Raises:
            ValueError: the ids do not follow the grammar; names the position. A span that is cut off by the end of
                `ids` is no error: its codes are None.
        """
        ids = [int(token) for token in ids]
        ended = end_id in ids
        ids = ids[: ids.index(end_id)] if ended else ids
        position, masks, codes = 0, 0, None
        for span in self.order:
            if span == "segmentation":
                while position < len(ids) and ids[position] == vocabulary.seg:
                    masks += 1
                    position += 1
            elif position < len(ids) and ids[position] == vocabulary.depth_start:
                body = ids[position + 1 : position + 1 + self.depth_tokens]
                close = position + 1 + self.depth_tokens
                for offset, token in enumerate(body):
                    if not 0 <= token - vocabulary.first_code < vocabulary.num_codes:
                        raise ValueError(f"position {position + 1 + offset}: expected a depth code, got id {token}")
                if close < len(ids):
                    if ids[close] != vocabulary.depth_end:
                        raise ValueError(f"position {close}: expected {DEPTH_END}, got id {ids[close]}")
                    codes = tuple(token - vocabulary.first_code for token in body)
                elif ended:
                    raise ValueError(f"position {len(ids)}: the answer ends inside a depth span")
                position = close + 1
        perception = set(vocabulary.ids)
        for offset, token in enumerate(ids[position:], start=position):
            if token in perception:
                raise ValueError(f"position {offset}: perception token {token} is out of order")
        return Parsed(
            masks=masks,
            depth_codes=codes,
            text_ids=tuple(ids[position:]),
            ended=ended,
        )


_PERCEPTION = re.compile(
    rf"{re.escape(DEPTH_START)}(?:\s*<depth_\d+>)*(?:\s*{re.escape(DEPTH_END)})?"
    rf"|{re.escape(SEG)}|<depth_\d+>|{re.escape(DEPTH_END)}"
)


def strip_perception(text: str) -> str:
    """`text` without [SEG] and depth spans (whole, cut off or stray), and without the blanks that then stand at its ends.

    Benchmark parsers that read the first characters of an answer need this; a text without such tokens stays as it is, since
    to them blanks count too.
    """
    bare, found = _PERCEPTION.subn("", text)
    return bare.strip() if found else text
