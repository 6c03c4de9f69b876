"""The added tokens: ``[SEG]``, ``<depth_start>``, ``<depth_0>`` ... ``<depth_{K-1}>``, ``<depth_end>``.

``[SEG]`` is Sa2VA's, the depth tokens are AURORA's. K is the number of codes of the depth codebook. All of them are
special tokens: no text of a user or a data set becomes one of them by accident when it is encoded as plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from perceptio_core.weights import settle_tying

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEG = "[SEG]"
DEPTH_START = "<depth_start>"
DEPTH_END = "<depth_end>"


def depth_token(code: int) -> str:
    """The token that stands for one code of the depth codebook, ``code`` in [0, K)."""
    return f"<depth_{code}>"


def added_tokens(*, num_codes: int) -> list[str]:
    """All added tokens in the order of their ids.

    Args:
        num_codes: K >= 1, codes of the depth codebook.
    """
    if num_codes < 1:
        raise ValueError(f"num_codes must be at least 1, got {num_codes}")
    return [SEG, DEPTH_START, *(depth_token(code) for code in range(num_codes)), DEPTH_END]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids of the added tokens in one tokenizer; the id of depth code k is ``first_code + k``."""

    seg: int
    depth_start: int
    depth_end: int
    first_code: int
    num_codes: int

    @classmethod
    def add_to(cls, tokenizer: PreTrainedTokenizerBase, *, num_codes: int) -> Vocabulary:
        """Add the tokens to `tokenizer` (in place; none twice) and return their ids.

        Raises:
            ValueError: the tokenizer already holds some of them in a way that does not fit, see `of`.
        """
        from tokenizers import AddedToken

        tokens = [AddedToken(token, special=True, normalized=False) for token in added_tokens(num_codes=num_codes)]
        tokenizer.add_tokens(tokens, special_tokens=True)
        return cls.of(tokenizer, num_codes=num_codes)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, num_codes: int) -> Vocabulary:
        """The ids in a tokenizer that has the tokens.

        Raises:
            ValueError: a token is missing, there are more codes than `num_codes`, or the codes' ids are not contiguous.
        """
        known = tokenizer.get_vocab()
        missing = [token for token in added_tokens(num_codes=num_codes) if token not in known]
        if missing:
            raise ValueError(f"the tokenizer lacks {len(missing)} perception tokens, the first is {missing[0]!r}")
        if depth_token(num_codes) in known:
            raise ValueError(f"the tokenizer holds {depth_token(num_codes)!r}, but the codebook has {num_codes} codes")
        first = known[depth_token(0)]
        strays = [code for code in range(num_codes) if known[depth_token(code)] != first + code]
        if strays:
            raise ValueError(
                f"the ids of the depth codes must be contiguous from {depth_token(0)!r} = {first}, "
                f"but {depth_token(strays[0])!r} is {known[depth_token(strays[0])]}"
            )
        return cls(
            seg=known[SEG],
            depth_start=known[DEPTH_START],
            depth_end=known[DEPTH_END],
            first_code=first,
            num_codes=num_codes,
        )

    @property
    def ids(self) -> list[int]:
        """Ids of all added tokens, in the order of `added_tokens`: the rows that co-training adds and trains in full."""
        return [self.seg, self.depth_start, *range(self.first_code, self.first_code + self.num_codes), self.depth_end]

    @cached_property
    def id_of(self) -> dict[str, int]:
        """Id of each added token by its text."""
        return dict(zip(added_tokens(num_codes=self.num_codes), self.ids, strict=True))

    def code_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Token ids of depth codes in [0, K), any shape."""
        return codes + self.first_code

    def codes(self, ids: torch.Tensor) -> torch.Tensor:
        """Depth codes in [0, K) of code token ids, any shape."""
        return ids - self.first_code

    def is_code(self, ids: torch.Tensor) -> torch.Tensor:
        """Where `ids` are depth codes: bool, same shape."""
        return (ids >= self.first_code) & (ids < self.first_code + self.num_codes)


APART = 0.5
"""How far the rows of codes that start from words are drawn apart, in standard deviations of the old rows."""


@torch.no_grad()
def add_rows(
    model: PreTrainedModel,
    *,
    vocabulary: Vocabulary,
    vocabulary_size: int,
    code_word_ids: Sequence[int] = (),
    seed: int = 0,
) -> None:
    """Give the added tokens rows in the input embedding and the output head, in place.

    A new row is drawn from the diagonal Gaussian fitted to the old rows of its matrix, so that new tokens start at the
    scale of trained ones and apart from one another (ours). The codes of the depth codebook, which are in the order of the
    nearness that they stand for, may start from words for levels instead: the first code's rows from the first word's, the
    last code's from the last word's, the others' between them, all drawn apart by `APART` (ours). What the base knows of
    levels then holds for codes from the first step on. The old rows stay equal to the bit. Matrices that the base model
    padded beyond its tokenizer are never shrunk. An output head that differs from the input embedding stays a matrix of its
    own, whatever the model's configuration says of it; the configuration is set right.

    Args:
        model: a causal language model with input and output embeddings, tied or not.
        vocabulary: ids of the added tokens.
        vocabulary_size: number of tokens of the tokenizer, the added ones included.
        code_word_ids: ids of words for levels, the farthest first; none: codes are drawn like the other added tokens.
        seed: of the draw; independent of torch's global generators.
    """
    settle_tying(model)
    rows = model.get_input_embeddings().weight.shape[0]
    if vocabulary_size > rows:
        # The library's own initialisation of the new rows, which are overwritten below, draws from the global generator.
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
    weights = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    added = torch.tensor(vocabulary.ids)
    codes = slice(vocabulary.first_code - int(added.min()), vocabulary.first_code - int(added.min()) + vocabulary.num_codes)
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values():
        old = weight[: int(added.min())].float()
        noise = old.std(0) * torch.randn(len(added), weight.shape[1], generator=generator).to(old.device)
        new = old.mean(0) + noise
        if code_word_ids:
            new[codes] = _between(old[list(code_word_ids)], count=vocabulary.num_codes) + APART * noise[codes]
        weight[added.to(weight.device)] = new.to(weight.dtype)


def _between(rows_WD: torch.Tensor, *, count: int) -> torch.Tensor:
    """`count` rows, evenly spaced from the first of `rows_WD` to the last, linear between neighbours."""
    place_C = torch.linspace(0, len(rows_WD) - 1, count, device=rows_WD.device)
    low_C = place_C.long().clamp(max=max(len(rows_WD) - 2, 0))
    share_C1 = (place_C - low_C)[:, None]
    return torch.lerp(rows_WD[low_C], rows_WD[(low_C + 1).clamp(max=len(rows_WD) - 1)], share_C1)
