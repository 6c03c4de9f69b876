"""Decoding by the grammar: which tokens `perceptio_core.grammar` admits next, and a decoder that asks the model only where
there is a choice.

After ``<depth_start>`` come exactly N codes, then ``<depth_end>``; spans come in order and once; after them text only.
What may follow is read from a row's tokens at every step, so nothing is kept between steps and rows may stop at any time.

Where one token alone may follow, it is written without a forward pass and read together with the next one. So a marker
costs none, depth codes that are given cost one pass for all of them, and a span that nobody wants costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, InternVLForConditionalGeneration, LogitsProcessor

from perceptio_core.grammar import Grammar
from perceptio_core.model.depth_draft import DepthDraft
from perceptio_core.model.processing import Prompts
from perceptio_core.vocabulary import Vocabulary

NOTHING = -1
"""Stands where a row has no token."""

MAX_MASKS = 32
"""Most [SEG] of an answer unless a caller says otherwise (ours): far more than most samples hold; it is there to end loops."""

_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention without cuDNN, which torch prefers on Hopper: it makes a plan for each new length, and here that is every pass."""


class GrammarLogitsProcessor(LogitsProcessor):
    """Admits the tokens that may follow, row by row; for `decode`, and a logits processor for `transformers`' `generate`.

    Args:
        grammar: order and length of the spans.
        vocabulary: ids of the added tokens.
        end_id: the end token; forced when a row has used up its text.
        prompt_length: as a processor of `generate`: tokens of the (left-padded) prompt; what follows is the answer.
        segment: True forces at least one [SEG], False forbids it, None leaves it to the model.
        depth: the same for the depth span.
        max_masks: most [SEG] tokens of an answer, >= 1.
        max_text_tokens: most text tokens of an answer, >= 0, the end token not counted.
        never: ids that are not admitted anywhere (image placeholders).
        depth_codes_BN: codes in [0, K) that each row's depth span must hold, if it has one; None leaves them to the model.

    Raises:
        ValueError: a span is forced that the grammar does not have, the given codes are not N or not in [0, K), or no mask is
            allowed by `max_masks`.
    """

    def __init__(
        self,
        *,
        grammar: Grammar,
        vocabulary: Vocabulary,
        end_id: int,
        prompt_length: int = 0,
        segment: bool | None = None,
        depth: bool | None = None,
        max_text_tokens: int,
        max_masks: int = MAX_MASKS,
        never: Sequence[int] = (),
        depth_codes_BN: Tensor | None = None,
    ) -> None:
        wishes = {"segmentation": segment, "depth": depth}
        for span, wish in wishes.items():
            if wish and span not in grammar.order:
                raise ValueError(f"cannot force a {span} span: the model was trained without, its order is {grammar.order}")
        if max_masks < 1:
            raise ValueError(f"max_masks is {max_masks}; allowed is 1 or more, and segment=False for none")
        self.spans = [span for span in grammar.order if wishes[span] is not False]
        self.forced = {span for span, wish in wishes.items() if wish}
        self.depth_tokens, self.max_masks, self.max_text_tokens = grammar.depth_tokens, max_masks, max_text_tokens
        self.vocabulary, self.prompt_length, self.end_id = vocabulary, prompt_length, end_id
        self.not_text = torch.tensor(sorted({*vocabulary.ids, *never}))
        if depth_codes_BN is not None:
            if depth_codes_BN.ndim != 2 or depth_codes_BN.shape[1] != grammar.depth_tokens:
                raise ValueError(
                    f"a depth span holds {grammar.depth_tokens} codes, the given ones are {tuple(depth_codes_BN.shape)}"
                )
            if ((depth_codes_BN < 0) | (depth_codes_BN >= vocabulary.num_codes)).any():
                raise ValueError(f"depth codes are 0 to {vocabulary.num_codes - 1}; others were given")
        self.depth_codes_BN = depth_codes_BN

    @property
    def longest(self) -> int:
        """Most tokens of an answer, its end included."""
        return self.max_masks + self.depth_tokens + 2 + self.max_text_tokens + 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) with everything that may not follow set to -inf."""
        return scores.masked_fill(~self.admitted(input_ids[:, self.prompt_length :], size=scores.shape[1]), -torch.inf)

    def admitted(self, answer_BT: Tensor, *, size: int) -> Tensor:
        """Which tokens may follow the answers so far (rows, T), each followed by any number of NOTHING: bool (rows, size)."""
        vocabulary = self.vocabulary
        is_code_BT = vocabulary.is_code(answer_BT)
        is_seg_BT, is_start_BT = answer_BT == vocabulary.seg, answer_BT == vocabulary.depth_start
        is_close_BT = answer_BT == vocabulary.depth_end
        text_B = (~(is_code_BT | is_seg_BT | is_start_BT | is_close_BT | (answer_BT == NOTHING))).sum(1)
        codes_B, segs_B = is_code_BT.sum(1), is_seg_BT.sum(1)
        written = {"segmentation": segs_B > 0, "depth": is_start_BT.any(1)}
        inside_B = written["depth"] & ~is_close_BT.any(1)

        # Backwards over the spans: one may be opened while nothing that comes after it has begun, and what comes after
        # it is blocked while it is forced and missing.
        blocked = {place: torch.zeros_like(inside_B) for place in (*self.spans, "text")}
        for i, span in enumerate(self.spans):
            if span in self.forced:
                for later in (*self.spans[i + 1 :], "text"):
                    blocked[later] = blocked[later] | ~written[span]
        passed_B = inside_B | (text_B > 0)
        may = {"text": ~inside_B & ~blocked["text"]}
        for span in reversed(self.spans):
            more_B = segs_B < self.max_masks if span == "segmentation" else ~written["depth"]
            may[span] = ~passed_B & ~blocked[span] & more_B
            passed_B = passed_B | written[span]

        admitted = may["text"][:, None] & (text_B < self.max_text_tokens)[:, None].expand(-1, size)
        admitted = admitted.clone()
        self.not_text = self.not_text.to(admitted.device)  # once: a copy at each token would wait for the device
        admitted[:, self.not_text] = False
        admitted[:, self.end_id] = may["text"]
        if "segmentation" in may:
            admitted[:, vocabulary.seg] = may["segmentation"]
        if "depth" in may:
            admitted[:, vocabulary.depth_start] = may["depth"]
            first = vocabulary.first_code
            more_codes_B = inside_B & (codes_B < self.depth_tokens)
            codes_BK = more_codes_B[:, None].expand(-1, vocabulary.num_codes)
            if self.depth_codes_BN is not None:
                self.depth_codes_BN = self.depth_codes_BN.to(answer_BT.device)
                next_B1 = self.depth_codes_BN.gather(1, codes_B.clamp(max=self.depth_tokens - 1)[:, None])
                codes_BK = codes_BK & (torch.arange(vocabulary.num_codes, device=answer_BT.device) == next_B1)
            admitted[:, first : first + vocabulary.num_codes] = codes_BK
            admitted[:, vocabulary.depth_end] = inside_B & (codes_B == self.depth_tokens)
        return admitted


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Answers that were written.

    Attributes:
        ids: tokens of each row, the end token included where it is reached.
        seg_states: per row (masks, D): last hidden states *at* its [SEG] tokens.
        passes: forward passes that read each row.
    """

    ids: list[list[int]]
    seg_states: list[Tensor]
    passes: list[int]


def decode(vlm: InternVLForConditionalGeneration, prompts: Prompts, *, constraint: GrammarLogitsProcessor) -> Decoded:
    """Write the answers to a batch of prompts, greedily among the tokens that are admitted; see `decoding`."""
    (so_far,) = deque(decoding(vlm, prompts, constraint=constraint), maxlen=1)
    return so_far()


@torch.inference_mode()
def decoding(
    vlm: InternVLForConditionalGeneration, prompts: Prompts, *, constraint: GrammarLogitsProcessor
) -> Iterator[Callable[[], Decoded]]:
    """Write the answers to a batch of prompts, pass by pass, for one who watches them grow.

    Args:
        vlm: the language model with its vision tower, in evaluation mode.
        prompts: left-padded, on any device.
        constraint: what is admitted; its `prompt_length` is not used here.

    Yields:
        After each forward pass, and at least once, what gives the answers as far as they are written: the last one, whole.
    """
    device, size = vlm.device, vlm.config.text_config.vocab_size
    rows, vocabulary = len(prompts.input_ids_BT), constraint.vocabulary
    places_T = torch.arange(constraint.longest, device=device)
    answer_BT = torch.full((rows, constraint.longest), NOTHING, device=device)
    length_B, read_B, passes_B = torch.zeros(3, rows, dtype=torch.int64, device=device)
    ended_B = torch.zeros(rows, dtype=torch.bool, device=device)
    reader = _Reader(vlm=vlm, prompts=prompts)
    draft = DepthDraft(rows=rows, depth_tokens=constraint.depth_tokens, vocabulary=vocabulary, device=device)
    codes = slice(vocabulary.first_code, vocabulary.first_code + vocabulary.num_codes)
    states: list[list[Tensor]] = [[] for _ in range(rows)]

    def so_far() -> Decoded:
        return Decoded(
            ids=[row[:length] for row, length in zip(answer_BT.tolist(), length_B.tolist(), strict=True)],
            seg_states=[torch.stack(row) if row else torch.zeros(0, vlm.config.text_config.hidden_size) for row in states],
            passes=passes_B.tolist(),
        )

    def write(token_B: Tensor, where_B: Tensor) -> None:
        answer_BT[where_B, length_B[where_B]] = token_B[where_B]
        length_B.add_(where_B)
        ended_B.logical_or_(where_B & (token_B == constraint.end_id))

    while True:
        admitted_BV = constraint.admitted(answer_BT, size=size)
        while (alone_B := ~ended_B & (admitted_BV.sum(1) == 1)).any():
            write(admitted_BV.int().argmax(1), alone_B)
            admitted_BV = constraint.admitted(answer_BT, size=size)
        unread_BT = (places_T >= read_B[:, None]) & (places_T < length_B[:, None])
        # An answer that has ended is read on only for the state at a [SEG].
        wanted_B = ~ended_B | (unread_BT & (answer_BT == vocabulary.seg)).any(1)
        if not wanted_B.any():
            break
        unread_BT &= wanted_B[:, None]
        filled_BT, guess_BT = draft.fill(answer_BT, length_B)
        ids_BC, hidden_BCD, newest_B = reader.read(filled_BT, unread_BT, guess_BT, filler=constraint.end_id)
        for row, place in torch.nonzero(ids_BC == vocabulary.seg).tolist():
            states[row].append(hidden_BCD[row, place])
        passes_B += wanted_B
        read_B = torch.where(wanted_B, length_B, read_B)
        if guess_BT.any():
            first_B, count_B = vocabulary.is_code(answer_BT).sum(1), guess_BT.sum(1)
            place_BW = newest_B[:, None] + torch.arange(int(count_B.max()), device=device)
            place_BW = place_BW.clamp(max=ids_BC.shape[1] - 1)
            hidden_BWD = hidden_BCD.gather(1, place_BW[..., None].expand(-1, -1, hidden_BCD.shape[2]))
            right_B = draft.learn(
                vlm.get_output_embeddings()(hidden_BWD)[..., codes],
                first_B=first_B,
                guesses_BW=ids_BC.gather(1, (place_BW + 1).clamp(max=ids_BC.shape[1] - 1)),
                count_B=count_B,
            )
            answer_BT = torch.where(places_T < (length_B + right_B)[:, None], filled_BT, answer_BT)
            length_B, read_B, newest_B = length_B + right_B, read_B + right_B, newest_B + right_B
            reader.forget_after(newest_B)
            admitted_BV = constraint.admitted(answer_BT, size=size)
        logits_BV = vlm.get_output_embeddings()(hidden_BCD[torch.arange(rows), newest_B])
        write(logits_BV.masked_fill(~admitted_BV, -torch.inf).argmax(1), ~ended_B)
        yield so_far
    yield so_far


class _Reader:
    """Feeds prompts, then any number of new tokens per row, and keeps what attention needs of them.

    Rows get different numbers of tokens at a time, so each has holes in its cache, which the attention mask hides.
    """

    def __init__(self, *, vlm: InternVLForConditionalGeneration, prompts: Prompts) -> None:
        self._vlm, self._prompts, self._cache = vlm, prompts, DynamicCache()
        self._mask_BT = torch.zeros(len(prompts.input_ids_BT), 0, dtype=torch.int64, device=vlm.device)

    def read(self, ids_BT: Tensor, settled_BT: Tensor, guess_BT: Tensor, *, filler: int) -> tuple[Tensor, Tensor, Tensor]:
        """One forward pass over the tokens of `ids_BT` where settled or guessed; the first one begins with the prompts.

        Returns:
            The tokens read (B, C), each row's side by side, guesses last; `filler` where it has fewer, and in the place of the
            prompts, whose [SEG] tokens are of earlier turns; the last hidden states there (B, C, D); of each row the place of
            its newest settled token.
        """
        device, new_BT = self._vlm.device, settled_BT | guess_BT
        order_BC = torch.sort(~new_BT, dim=1, stable=True).indices[:, : int(new_BT.sum(1).max())]
        mask_BC = new_BT.gather(1, order_BC).long()
        read_BC = torch.where(mask_BC > 0, ids_BT.gather(1, order_BC), filler)
        fed_BC, pixels, newest_B = read_BC, None, settled_BT.sum(1) - 1
        if not self._mask_BT.shape[1]:
            fed_BC = torch.cat([self._prompts.input_ids_BT.to(device), read_BC], 1)
            prompt = fed_BC.shape[1] - read_BC.shape[1]
            newest_B = newest_B + prompt
            read_BC = torch.nn.functional.pad(read_BC, (prompt, 0), value=filler)
            mask_BC = torch.cat([self._prompts.attention_mask_BT.to(device), mask_BC], 1)
            pixels = self._prompts.pixels_PCHW.to(device, self._vlm.dtype)
        before_B1 = self._mask_BT.sum(1, keepdim=True)
        self._mask_BT = torch.cat([self._mask_BT, mask_BC], 1)
        self._first = self._mask_BT.shape[1] - mask_BC.shape[1]
        with sdpa_kernel(_KERNELS):
            output = self._vlm.model(
                input_ids=fed_BC,
                attention_mask=self._mask_BT,
                position_ids=(before_B1 + mask_BC.cumsum(1) - 1).clamp(min=0),
                pixel_values=pixels,
                past_key_values=self._cache,
                use_cache=True,
            )
        return read_BC, output.last_hidden_state, newest_B.clamp(min=0)

    def forget_after(self, newest_B: Tensor) -> None:
        """Drop what the last pass read behind the places `newest_B` (its tokens count from 0)."""
        places_C = torch.arange(self._mask_BT.shape[1] - self._first, device=newest_B.device)
        self._mask_BT[:, self._first :] *= places_C <= newest_B[:, None]
        surplus = len(places_C) - 1 - int(newest_B.max())
        if surplus:
            self._cache.crop(-surplus)
            self._mask_BT = self._mask_BT[:, :-surplus]
