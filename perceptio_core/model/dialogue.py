"""Token ids of conversations: the chat template's text around questions and answers, whose perception tokens have roles.

Texts of users and data sets are encoded as plain text: a question that contains ``[SEG]`` or an image placeholder cannot
disturb the sequence. Only in answers of earlier turns, which are to be the model's own, are perception tokens what they spell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from perceptio_core.grammar import Role
from perceptio_core.model.configuration import PerceptioConfig
from perceptio_core.vocabulary import DEPTH_END, DEPTH_START, SEG, depth_token

QUESTION_SLOT, ANSWER_SLOT = "\x00Q\x00", "\x00A\x00"
"""What a rendered template holds in the place of a question and of an answer."""

_PERCEPTION_TOKEN = re.compile(rf"({re.escape(SEG)}|{re.escape(DEPTH_START)}|{re.escape(DEPTH_END)}|<depth_\d+>)")
_SLOT = re.compile(f"{QUESTION_SLOT}|{ANSWER_SLOT}")


class TrainingSample(Protocol):
    """What `collate` reads of a sample."""

    @property
    def key(self) -> str:
        """Name for messages."""

    @property
    def image(self) -> Image.Image:
        """RGB."""

    @property
    def turns(self) -> Sequence[tuple[str, str | int]]:
        """(question, answer) pairs, at least one; the depth span is written before the first answer. A number in the place of
        an answer is that depth code.
        """

    @property
    def masks(self) -> Sequence[NDArray[np.bool_]]:
        """One bool mask at the image's size per object to segment; empty for none."""

    @property
    def mask_turns(self) -> Sequence[int]:
        """Of each mask, the turn whose answer holds its [SEG], ascending."""

    @property
    def depth_codes(self) -> Sequence[int] | None:
        """N codes in [0, K), or None."""


class Dialogue:
    """Token ids of conversations about one image.

    Args:
        tokenizer: of the base model, with the added tokens, as the backend has it.
        rendered: the chat template's text of two turns, an image placeholder before the first question, with the slots above.
        config: of the model.
        image_ids: start, placeholder and end of an image.
        tokens_per_tile: placeholders of each tile.

    Raises:
        ValueError: the template is not of the known kind: one image placeholder before the first question, every answer
            closed by `config.end_token_id`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rendered: str,
        *,
        config: PerceptioConfig,
        image_ids: tuple[int, int, int],
        tokens_per_tile: int,
    ) -> None:
        self.config, self._image_ids, self._tokens_per_tile = config, image_ids, tokens_per_tile
        self._special = Tokenizer.from_str(tokenizer.to_str())
        self._special.no_padding()
        self._special.no_truncation()
        self._plain = Tokenizer.from_str(self._special.to_str())
        self._plain.encode_special_tokens = True
        # Before a question, between it and its answer, between turns, after the last.
        fragments = _SLOT.split(rendered)
        self._before, self._within, between, _, _ = [self._ids(self._special, text) for text in fragments]
        if between[:1] != [config.end_token_id]:
            raise ValueError(f"the chat template closes answers with {fragments[2]!r}, not with id {config.end_token_id}")
        if self._before.count(image_ids[1]) != 1:
            raise ValueError(f"the chat template holds no single image placeholder before the question: {fragments[0]!r}")
        self._between = between[1:]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids, by default with special tokens."""
        return str(self._special.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens))

    def text(self, row: list[int]) -> str:
        """The prompt without special tokens, and the text of the answer behind it."""
        length, end = len(self._within), self.config.end_token_id
        starts = [place for place in range(len(row)) if row[place : place + length] == self._within]
        start = starts[-1] + length if starts else 0
        answer = row[start : row.index(end, start)] if end in row[start:] else row[start:]
        perception = set(self.config.vocabulary.ids)
        text = self.decode([token for token in answer if token not in perception]).strip()
        return self.decode(row[:start], skip_special_tokens=True) + text

    def prompt(self, history: Sequence[tuple[str, str]], question: str, *, tiles: int) -> list[int]:
        """Token ids of the turns so far and of a question, up to where its answer begins."""
        questions = [*(asked for asked, _ in history), question]
        ids = self._first(questions[0], tiles=tiles)
        for (_, answer), follow_up in zip(history, questions[1:], strict=True):
            ids += [*self._answer(answer), self.config.end_token_id, *self._follow_up(follow_up)]
        return ids

    def _answer(self, raw: str) -> list[int]:
        """Token ids of an answer that the model wrote; all but its perception tokens is plain text."""
        added = self.config.vocabulary.id_of
        pieces = _PERCEPTION_TOKEN.split(raw)
        return list(
            chain.from_iterable([added[piece]] if piece in added else self._ids(self._plain, piece) for piece in pieces)
        )

    def _follow_up(self, question: str) -> list[int]:
        """Token ids from behind an answer's end token to where the next answer begins."""
        return [*self._between, *self._ids(self._plain, question), *self._within]

    def _first(self, question: str, *, tiles: int) -> list[int]:
        start, placeholder, end = self._image_ids
        place = self._before.index(placeholder)
        image = [start, *[placeholder] * (tiles * self._tokens_per_tile), end]
        before = [*self._before[:place], *image, *self._before[place + 1 :]]
        return [*before, *self._ids(self._plain, question), *self._within]

    def sequence(self, sample: TrainingSample, *, tiles: int) -> tuple[list[int], list[int]]:
        """Token ids and roles of a whole conversation, the last end token included."""
        if not sample.turns:
            raise ValueError(f"{sample.key}: a sample needs at least one turn")
        mask_turns = list(sample.mask_turns)
        in_order = mask_turns == sorted(mask_turns) and set(mask_turns) <= set(range(len(sample.turns)))
        if len(mask_turns) != len(sample.masks) or not in_order:
            raise ValueError(
                f"{sample.key}: {len(sample.masks)} masks in {len(sample.turns)} turns need as many mask_turns, ascending "
                f"from 0, not {mask_turns}"
            )
        grammar, vocabulary = self.config.grammar, self.config.vocabulary
        perception = {Role.SEG, Role.DEPTH_START, Role.DEPTH_CODE, Role.DEPTH_END}
        ids: list[int] = []
        roles: list[int] = []
        for turn, (question, answer) in enumerate(sample.turns):
            prompt = self._first(question, tiles=tiles) if turn == 0 else self._follow_up(question)
            masks, codes = mask_turns.count(turn), sample.depth_codes if turn == 0 else None
            for code in (*(codes or ()), *([answer] if isinstance(answer, int) else ())):
                if not 0 <= code < vocabulary.num_codes:
                    raise ValueError(f"{sample.key}: depth code {code}; the model's are 0 to {vocabulary.num_codes - 1}")
            ids += prompt
            roles += [Role.PROMPT] * len(prompt)
            try:
                pieces = grammar.pieces(masks=masks, depth_codes=codes, answer=answer if isinstance(answer, str) else "")
            except ValueError as error:
                raise ValueError(f"{sample.key}: {error}") from error
            for role, text in pieces:
                piece = [vocabulary.id_of[text]] if role in perception else self._ids(self._plain, text)
                ids += piece
                roles += [role] * len(piece)
            if isinstance(answer, int):
                ids.append(vocabulary.id_of[depth_token(answer)])
                roles.append(Role.ANSWER)
            ids.append(self.config.end_token_id)
            roles.append(Role.END)
        return ids, roles

    @staticmethod
    def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
