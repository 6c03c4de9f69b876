"""Decoding by the grammar: a logits processor that admits only what `perceptio_core.grammar` allows next.

After ``<depth_start>`` come exactly N codes, then ``<depth_end>``; spans come in order and once; after them text only.
The state of each row is read from its tokens at every step, so the processor holds none and rows may stop at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from perceptio_core.grammar import Grammar
from perceptio_core.vocabulary import Vocabulary


class GrammarLogitsProcessor(LogitsProcessor):
    """Admits the tokens that may follow, row by row.

    Args:
        grammar: order and length of the spans.
        vocabulary: ids of the added tokens.
        prompt_length: number of tokens of the (left-padded) prompt; what follows is the answer.
        end_id: the end token; forced when a row has used up its text.
        segment: True forces at least one [SEG], False forbids it, None leaves it to the model.
        depth: the same for the depth span.
        max_masks: most [SEG] tokens of an answer, >= 1.
        max_text_tokens: most text tokens of an answer, >= 0, the end token not counted.
        never: ids that are not admitted anywhere (image placeholders).

    Raises:
        ValueError: a span is forced that the grammar does not have.
    """

    def __init__(
        self,
        *,
        grammar: Grammar,
        vocabulary: Vocabulary,
        prompt_length: int,
        end_id: int,
        segment: bool | None = None,
        depth: bool | None = None,
        max_masks: int = 8,
        max_text_tokens: int = 2**31,
        never: Sequence[int] = (),
    ) -> None:
        wishes = {"segmentation": segment, "depth": depth}
        for span, wish in wishes.items():
            if wish and span not in grammar.order:
                raise ValueError(f"cannot force a {span} span: the model was trained without, its order is {grammar.order}")
        self.spans = [span for span in grammar.order if wishes[span] is not False]
        self.forced = {span for span, wish in wishes.items() if wish}
        self.depth_tokens, self.max_masks, self.max_text_tokens = grammar.depth_tokens, max_masks, max_text_tokens
        self.vocabulary, self.prompt_length, self.end_id = vocabulary, prompt_length, end_id
        self.not_text = torch.tensor(sorted({*vocabulary.ids, *never}))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) with everything that may not follow set to -inf."""
        return scores.masked_fill(~self.admitted(input_ids[:, self.prompt_length :], size=scores.shape[1]), -torch.inf)

    def admitted(self, answer_BT: Tensor, *, size: int) -> Tensor:
        """Which tokens may follow the answers so far: bool (rows, size)."""
        vocabulary = self.vocabulary
        is_code_BT = vocabulary.is_code(answer_BT)
        is_seg_BT, is_start_BT = answer_BT == vocabulary.seg, answer_BT == vocabulary.depth_start
        is_close_BT = answer_BT == vocabulary.depth_end
        text_B = (~(is_code_BT | is_seg_BT | is_start_BT | is_close_BT)).sum(1)
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
        admitted[:, self.not_text.to(admitted.device)] = False
        admitted[:, self.end_id] = may["text"]
        if "segmentation" in may:
            admitted[:, vocabulary.seg] = may["segmentation"]
        if "depth" in may:
            admitted[:, vocabulary.depth_start] = may["depth"]
            first = vocabulary.first_code
            more_codes_B = inside_B & (codes_B < self.depth_tokens)
            admitted[:, first : first + vocabulary.num_codes] = more_codes_B[:, None]
            admitted[:, vocabulary.depth_end] = inside_B & (codes_B == self.depth_tokens)
        return admitted
