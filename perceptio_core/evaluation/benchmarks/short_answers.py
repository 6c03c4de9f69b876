"""Short answers in words: when one counts as right, and what kind of answer a question has. The rules are ours.

exact      the answer is the expected one, capitals, blanks, and the punctuation around it aside
contained  the expected one stands in the answer, as whole words, the same aside

"not red" contains "red": read both, and some answers. Kinds of answers are those of VQA: yes or no, a number, others.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

from perceptio_core.evaluation.benchmarks.benchmark import most_frequent

AnswerKind = Literal["yes_no", "number", "other"]

_BEFORE = " \"'([{*_`“‘「"
_AFTER = " \"')]}*_`.,;:!?”’」。、！？，；：…"
"""What may stand around an answer: quotes, brackets, emphasis; and at its end what ends a sentence; signs and % stay."""
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*%?")
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
"""Scripts without blanks between words, or between words and endings: Thai, Lao, Burmese, Khmer, Japanese, Chinese, Korean."""
_LETTER = rf"[^\W{_UNSPACED}]"


def folded(text: str) -> str:
    """A text without what makes no difference: compatibility forms (NFKC), capitals, blanks in a row, punctuation around it."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.lstrip(_BEFORE).rstrip(_AFTER) or plain


def is_exact(said: str, expected: str) -> bool:
    """Whether the answer is the expected one."""
    return folded(said) == folded(expected)


def is_contained(said: str, expected: str) -> bool:
    """Whether the expected answer stands in the answer as whole words."""
    wanted = folded(expected)
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, wanted[0]) else ""
    after = rf"(?!{_LETTER})" if re.match(_LETTER, wanted[-1]) else ""
    return re.search(before + re.escape(wanted) + after, folded(said)) is not None


def kind_of(answer: str) -> AnswerKind:
    """The kind of an expected answer."""
    plain = folded(answer)
    if plain in ("yes", "no"):
        return "yes_no"
    return "number" if _NUMBER.fullmatch(plain) or plain in _WORDS else "other"


def most_common(answers: Iterable[str]) -> str:
    """The most frequent answer, folded; of several the first in the alphabet."""
    return most_frequent(map(folded, answers))
