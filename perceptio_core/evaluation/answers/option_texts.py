"""The texts of options, as they are compared with an answer and looked for in it."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from perceptio_core.evaluation.answers import words

_AROUND_TEXT = string.punctuation + string.whitespace
_AROUND_PHRASE = string.whitespace + ".,;:!?\"'()[]<>"  # what may belong to it is kept: -5, C++
_UNSPACED = re.compile(f"[{words.UNSPACED}]")
_HANGUL = re.compile(f"[{words.HANGUL}]")
_ARABIC_PREFIX = re.compile(r"(?:^|[^\w])[وفبلك]{0,2}(?:ال)?$")
_IN_NUMBER = re.compile(r"\d[.,]$|(?:^|[\s(])-$")
_DENIAL = 16
"""Longest denial in characters."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """The text of an option as it is compared, in lower case.

    Attributes:
        exact: word for word.
        folded: without marks around it.
        plain: without Markdown, either.
    """

    exact: str
    folded: str
    plain: str


@lru_cache(maxsize=4096)
def option_text(text: str) -> Option:
    """The text of an option in the forms that are compared."""
    said = words.one_blank(words.alike(text))
    return Option(exact=said.casefold(), folded=folded(said), plain=folded(words.without_markdown(said)))


def folded(text: str) -> str:
    """`text` in lower case, without the marks around it."""
    return text.strip(_AROUND_TEXT).casefold()


def stated_options(text: str, options: Mapping[str, str]) -> dict[str, str]:
    """The options whose texts `text` states: not as part of a longer option's, and not denied."""
    stated = {}
    text = text.casefold()
    for letter, option in sorted(options.items(), key=lambda pair: -len(pair[1])):
        choice = option.casefold().strip(_AROUND_PHRASE)
        if choice not in text or not choice:
            continue
        places = list(_places(text, choice))
        if any(not words.DENIALS.search(text[max(0, place - _DENIAL) : place]) for place in places):
            stated[letter] = choice
        text = _blanked(text, places, len(choice))
    return stated


def without_options(text: str, choices: Iterable[str]) -> str:
    """`text` with the texts of options blanked out, so that the A in "Solution A" is not taken for option A."""
    folded = text.lower()
    for choice in choices:
        # Some characters have another length in lower case: such a text is left as it is.
        if len(choice) > 1 and len(folded) == len(text):
            text = _blanked(text, list(_places(folded, choice)), len(choice))
    return text


def _blanked(text: str, places: Sequence[int], length: int) -> str:
    """`text` with bars in place of the `length` characters at each place."""
    starts = [0, *(place + length for place in places)]
    return ("|" * length).join(text[start:end] for start, end in zip(starts, [*places, len(text)], strict=True))


def _places(text: str, choice: str) -> Iterator[int]:
    """Where `choice` stands as a whole word, or, in a script without blanks between words, at all."""
    first, last = _kind(choice[0]), _kind(choice[-1])
    place = text.find(choice)
    while place >= 0:
        end = place + len(choice)
        if choice in words.COPULAS:
            found = not _kind(text[place - 1 : place]) and not _kind(text[end : end + 1].replace("的", ""))
        else:
            found = _begins(text, place, first) and _ends(text, end, last)
        if found:
            yield place
        place = text.find(choice, end if found else place + 1)


def _begins(text: str, place: int, kind: str) -> bool:
    """Whether a word that begins with a character of this kind may begin at `place`."""
    before = _kind(text[place - 1 : place]) if place else ""
    match kind:
        case "unspaced":
            return True
        case "hangul":
            return before in ("", "unspaced")
        case "arabic":  # "and", "in", "the" are written onto the word
            return _ARABIC_PREFIX.search(text[max(0, place - 5) : place]) is not None
        case "digit":
            return before not in ("word", "digit", "arabic") and _IN_NUMBER.search(text[max(0, place - 2) : place]) is None
    return before not in ("word", "digit", "arabic")


def _ends(text: str, end: int, kind: str) -> bool:
    """Whether a word that ends with a character of this kind may end at `end`."""
    if kind in ("unspaced", "hangul"):
        return True
    if kind == "digit" and re.match(r"[.,]\d", text[end : end + 2]):
        return False
    return _kind(text[end : end + 1]) not in ("word", "digit", "arabic")


def _kind(character: str) -> str:
    """unspaced, hangul, arabic, digit, word (another letter), or empty for a mark, a blank, or nothing."""
    if not (character.isalnum() or character == "_"):
        return ""
    if character.isascii():
        return "digit" if character.isdigit() else "word"
    if _UNSPACED.match(character):
        return "unspaced"
    if _HANGUL.match(character):
        return "hangul"
    return "arabic" if "\u0621" <= character <= "\u064a" else "digit" if character.isdecimal() else "word"
