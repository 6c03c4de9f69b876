"""Guesses of the depth codes to come, so that one forward pass reads many codes and settles all that were guessed right.

Greedy decoding of a span is a fixed point: codes that are each the likeliest after those before them are the codes that
writing one at a time gives. A pass reads the guesses behind what is settled and tells the likeliest code after each of
them; the guesses are right up to the first that is not the likeliest, and what the pass said of the others is the next
guess (Jacobi decoding, arXiv 2305.10427; for image tokens arXiv 2410.01699). So the answer is the same, in as many
passes at most. It pays where guesses are right; those of a model that has hardly trained are not, and cost time.

Ours: the first guess is a ramp from the farthest code at the top of the map to the nearest at its bottom; a place that no pass
has looked at yet is guessed from the place above it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perceptio_core.vocabulary import Vocabulary

GUESSES_A_PASS = 96
"""Most guesses of a pass, over all its rows (ours)."""

MOST_ROWS = 4
"""Of a batch that guesses (ours; `python -m benchmarks.decoding`). Guesses are for one who waits for an answer, when a pass
costs its overhead; in a large batch it costs its tokens, and each wrong guess is one."""


class DepthDraft:
    """The guessed codes of a batch of answers.

    Args:
        rows: B, answers.
        depth_tokens: N, codes of a span, row-major over a square map.
        vocabulary: ids of the codes, in the order of nearness.
        device: of the answers.
    """

    def __init__(self, *, rows: int, depth_tokens: int, vocabulary: Vocabulary, device: torch.device) -> None:
        self._vocabulary, self._depth_tokens, self._side = vocabulary, depth_tokens, math.isqrt(depth_tokens)
        self.window = min(GUESSES_A_PASS // rows, depth_tokens + 1) if rows <= MOST_ROWS else 0
        ramp_N = torch.linspace(0, vocabulary.num_codes - 1, depth_tokens, device=device).round().long()
        # The places behind the map take what a pass says of them and are never read.
        self._codes_BM = torch.nn.functional.pad(ramp_N.repeat(rows, 1), (0, self.window + 1))
        self._seen_BM = torch.zeros_like(self._codes_BM, dtype=torch.bool)

    def fill(self, answer_BT: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """Put guesses behind the answers that stand inside a depth span.

        Args:
            answer_BT: what is settled.
            length_B: settled tokens of each.

        Returns:
            The answers with up to a window of guesses each, ``<depth_end>`` behind the last code included; bool (B, T), where
            the guesses are.
        """
        if not self.window:
            return answer_BT, torch.zeros_like(answer_BT, dtype=torch.bool)
        vocabulary, total = self._vocabulary, self._depth_tokens
        inside_B = (answer_BT == vocabulary.depth_start).any(1) & ~(answer_BT == vocabulary.depth_end).any(1)
        ahead_BT = torch.arange(answer_BT.shape[1], device=answer_BT.device) - length_B[:, None]
        code_BT = vocabulary.is_code(answer_BT).sum(1)[:, None] + ahead_BT
        guess_BT = inside_B[:, None] & (ahead_BT >= 0) & (ahead_BT < self.window) & (code_BT <= total)
        above = torch.arange(self._codes_BM.shape[1], device=answer_BT.device) >= self._side
        copied_BM = ~self._seen_BM & self._seen_BM.roll(self._side, 1) & above
        self._codes_BM = torch.where(copied_BM, self._codes_BM.roll(self._side, 1), self._codes_BM)
        ids_BT = vocabulary.code_ids(self._codes_BM.gather(1, code_BT.clamp(0, total)))
        ids_BT = torch.where(code_BT == total, vocabulary.depth_end, ids_BT)
        return torch.where(guess_BT, ids_BT, answer_BT), guess_BT

    def learn(self, code_logits_BWK: Tensor, *, first_B: Tensor, guesses_BW: Tensor, count_B: Tensor) -> Tensor:
        """Take over what a pass said of the places that it looked at.

        Args:
            code_logits_BWK: of the K codes, after the newest settled token and after each guess but the last.
            first_B: of each row, which code of the map the first of these is for.
            guesses_BW: ids of the guesses that were read.
            count_B: guesses of each row, 0 to W.

        Returns:
            How many of each row's guesses, from the first on, are what writing one token at a time gives.
        """
        vocabulary, total = self._vocabulary, self._depth_tokens
        codes_BW, place_W = code_logits_BWK.argmax(-1), torch.arange(code_logits_BWK.shape[1], device=first_B.device)
        index_BW, read_BW = first_B[:, None] + place_W, place_W < count_B[:, None]
        self._codes_BM.scatter_(1, index_BW, torch.where(read_BW, codes_BW, self._codes_BM.gather(1, index_BW)))
        self._seen_BM.scatter_(1, index_BW, read_BW | self._seen_BM.gather(1, index_BW))
        expected_BW = torch.where(index_BW < total, vocabulary.code_ids(codes_BW), vocabulary.depth_end)
        return ((guesses_BW == expected_BW) & read_BW).int().cumprod(1).sum(1)
