"""Multiple choice: the prompt, and reading the option that an answer settles on.

The reading is ours: no judge model and no random fall-back. VLMEvalKit's, without its judge, stands beside it, since many
published figures are read that way.

An answer counts as parsed only if it settles on one option. The rules, the first that applies:

1. The answer is the letter, whatever the case and brackets: ``B``, ``(b).``, ``**B**``.
2. The answer is the text of one option.
3. It states a verdict: "the answer is B", "B is closest", "the nearest point is (B)"; of several the last. A hedge
   ("the answer is A or B") settles on nothing. "Therefore ..." counts if what follows names one letter.
4. It begins with a letter as list mark, ``B. a cat``, and has no other list mark.
5. It names one letter, apart from the article "A" and from letters inside the text of an option.
6. It contains the text of one option.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping

INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""Last line of a multiple-choice prompt, as in lmms-eval."""

_MARKDOWN = re.compile(r"[*_`#]+")
_BLANKS = re.compile(r"\s+")
_WORD = re.compile(r" +[a-z]")
_VERB = re.compile(r" +(?:is|was|has|and|or|because|since|seems|appears|looks|lies|would|should|as|at)\b")
"""What follows an "A" that is a subject ("A is closest") rather than an article ("A dog")."""
_ALONE = string.punctuation + string.whitespace
_HEDGE = re.compile(r"\)?\s*(?:/|,|\bor\b|\band\b)\s*\(?[A-Z]\b")
_CONCLUSION = re.compile(r"\b(?i:therefore|thus|hence|so)\b")


def choice_prompt(question: str, choices: Mapping[str, str], *, hint: str = "") -> str:
    """A multiple-choice prompt as lmms-eval writes it: hint, question, one option a line, the instruction."""
    options = [f"{letter}. {choice}" for letter, choice in choices.items()]
    return "\n".join([*([hint] if hint else []), question, *options, INSTRUCTION])


def parse_option(text: str, *, letters: str, choices: Mapping[str, str] | None = None) -> str | None:
    """The option that `text` settles on, or None.

    Args:
        text: the answer without perception tokens.
        letters: the letters that exist, e.g. "ABC".
        choices: text of the options by letter, where the question has them.
    """
    # One blank for many: the rules' patterns would try every way to share a long run of them among themselves.
    plain = _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", _MARKDOWN.sub("", text)).strip()
    whole = plain.strip(_ALONE).upper()
    if len(whole) == 1 and whole in letters:
        return whole
    choices = {letter: _folded(choice) for letter, choice in (choices or {}).items()}
    same = [letter for letter, choice in choices.items() if choice and choice == _folded(plain)]
    if len(same) == 1:
        return same[0]
    for rule in (_verdict, _list_mark):
        settled, letter = rule(plain, letters)
        if settled:
            return letter
    contained = {letter: choice for letter, choice in choices.items() if _contains(plain, choice)}
    named = mentioned_letters(_without(plain, contained.values()), letters=letters)
    if named:
        return named.pop() if len(named) == 1 else None
    return next(iter(contained)) if len(contained) == 1 else None


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TAIL = 4  # words at the end, among which the letter must stand for the first time


def read_vlmevalkit_option(text: str, choices: Mapping[str, str]) -> str | None:
    """The option by VLMEvalKit's exact matching, or None.

    After ``can_infer`` in its ``vlmeval/utils/matching_util.py``: the one option letter among the words, if it stands among
    the last four; else the one option whose text the answer contains. Not taken over: with the environment variable VERBOSE
    set, that code drops an A in a longer answer; and its table reader takes an option "None" or "NA" for a missing one.
    """
    if any(refusal in text for refusal in _REFUSALS):
        return None
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _TAIL:
        return named[0]
    if not named and "Z" in words:
        return None
    lowered = text.lower()
    if len(lowered) > 2 * sum(len(choice) for choice in choices.values()):
        return None
    contained = [letter for letter, choice in choices.items() if choice.lower() in lowered]
    return contained[0] if len(contained) == 1 else None


def mentioned_letters(text: str, *, letters: str) -> set[str]:
    """All option letters that stand alone in `text` as capitals or in brackets; the article "A" is none."""
    found = {match.upper() for match in re.findall(rf"\(([{letters}{letters.lower()}])\)", text)}
    for match in re.finditer(rf"(?<![\w'’])[{letters}](?![\w'’])", text):
        article = match[0] == "A" and _WORD.match(text, match.end()) and not _VERB.match(text, match.end())
        if not article:
            found.add(match[0])
    return found


def _verdict(text: str, letters: str) -> tuple[bool, str | None]:
    letter = rf"\(?\b([{letters}])\b(?!['’])"
    noun = r"(?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|point|letter)\s+)?"
    patterns = (
        rf"\b(?i:answer)\b\s*(?i:is|was|would\s+be|should\s+be|must\s+be)?\s*[:=]?\s*{noun}{letter}",
        rf"\b(?i:closest|nearest)\b[^.\n]{{0,200}}?(?:\b(?i:is|be)\b|:)\s*{noun}{letter}",
        rf"{letter}\)?\s+(?i:is|seems|appears|looks|would\s+be|must\s+be)\s+(?i:to\s+be\s+)?(?i:the\s+)?(?i:closest|nearest|correct)\b",
    )
    matches = [match for pattern in patterns for match in re.finditer(pattern, text)]
    if matches:
        last = max(matches, key=lambda match: match.start(1))
        hedged = _HEDGE.match(text, last.end(1)) is not None
        return True, None if hedged else last[1]
    conclusions = list(_CONCLUSION.finditer(text))
    if conclusions:
        named = mentioned_letters(text[conclusions[-1].end() :], letters=letters)
        if len(named) == 1:
            return True, named.pop()
    return False, None


def _list_mark(text: str, letters: str) -> tuple[bool, str | None]:
    marks = re.findall(rf"(?:^|(?<=[\s,;]))\(?([{letters}])[).:](?=\s|$)", text)
    leads = re.match(rf"\(?([{letters}])[).:](?=\s|$)", text)
    if leads and set(marks) == {leads[1]}:
        return True, leads[1]
    return False, None


def _folded(text: str) -> str:
    return " ".join(text.split()).strip(_ALONE).casefold()


def _contains(text: str, choice: str) -> bool:
    return bool(choice) and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", _folded(text)) is not None


def _without(text: str, choices: Iterable[str]) -> str:
    """`text` with the texts of options blanked out, so that the A in "Solution A" is not taken for option A."""
    for choice in choices:
        if len(choice) > 1:
            text = re.sub(rf"(?<!\w){re.escape(choice)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return text
