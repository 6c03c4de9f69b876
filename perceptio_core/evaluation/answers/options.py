r"""Reading the option that an answer to a multiple-choice question settles on.

The reading is ours: no judge model and no random fall-back. Those of VLMEvalKit stand beside it
(`perceptio_core.evaluation.answers.harness_readings`), since many published figures are read that way.

An answer counts as parsed only if it settles on one option. The rules, the first that applies:

1. The answer is the text of one option, word for word, and that text is not itself a letter: ``C++``.
2. The answer is the letter, whatever the case, width and brackets: ``B``, ``(b).``, ``**B**``, ``（Ｂ）``, ``\boxed{B}``.
3. The answer is the text of one option, apart from case and from marks around it.
4. It states a verdict: "the answer is B", "B is closest", "答案是B"; of several the last. A hedge ("the answer is A or B")
   settles on nothing. "Therefore ..." counts if what follows names one letter.
5. It begins with a letter as list mark, ``B. a cat``, and has no other list mark.
6. It names one letter, apart from the article "A" and from letters inside the text of an option.
7. It contains the text of one option. A text inside a longer option's text does not count.

What stands before a ``</think>`` is left aside. Letters and texts that are denied ("not A", "不是A", "not red") do not count.
What the languages say is in `perceptio_core.evaluation.answers.words`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from perceptio_core.evaluation.answers import words
from perceptio_core.evaluation.answers.option_texts import folded, option_text, stated_options, without_options

RULE = "the one option that the answer settles on, Perceptio's reading, version 2"
"""How protocols name this reading. Version 2 reads scripts other than Latin, and leaves denied options aside."""

_ARTICLE = re.compile(r" +[a-z]")
_VERB = re.compile(r" +(?:is|was|has|and|or|because|since|seems|appears|looks|lies|would|should|as|at)\b")
"""What follows an "A" that is a subject ("A is closest") rather than an article ("A dog")."""
_AROUND_LETTER = "".join(set(string.punctuation + string.whitespace) - set("+"))  # "C+" is no letter
_SINGLE_LETTER = re.compile(r"[\W_]*[A-Za-z][\s()\[\].,:;]*")
_CONCLUSION = re.compile(words.CONCLUSIONS, re.IGNORECASE)


def parse_option(text: str, *, letters: str, choices: Mapping[str, str] | None = None) -> str | None:
    """The option that `text` settles on, or None.

    Args:
        text: the answer without perception tokens.
        letters: the letters that exist, e.g. "ABC".
        choices: text of the options by letter, where the question has them.
    """
    text = text.rpartition("</think>")[2]  # what a reasoning model says to itself is no answer
    said = words.unboxed(words.one_blank(words.alike(text)))
    plain = words.one_blank(words.without_markdown(said))
    options = {letter: option_text(choice) for letter, choice in (choices or {}).items()}
    if not _SINGLE_LETTER.fullmatch(said):
        same = _same(said.casefold(), {letter: option.exact for letter, option in options.items()})
        if same:
            return same
    whole = plain.strip(_AROUND_LETTER).upper()
    if len(whole) == 1 and whole in letters:
        return whole
    same = _same(folded(said), {letter: option.folded for letter, option in options.items()})
    same = same or _same(folded(plain), {letter: option.plain for letter, option in options.items()})
    if same:
        return same
    left = _without_denied(plain, letters) if _patterns(letters).any.search(plain) else ""
    for rule in (_verdict, _list_mark):
        settled, letter = rule(left, letters)
        if settled:
            return letter
    # An option that is marks alone is no part of a text: Markdown has the same marks.
    contained = stated_options(said, {letter: option.exact for letter, option in options.items() if option.folded})
    contained = contained or stated_options(plain, {letter: option.plain for letter, option in options.items()})
    named = _mentioned(without_options(left, contained.values()), letters)
    if named:
        return named.pop() if len(named) == 1 else None
    return next(iter(contained)) if len(contained) == 1 else None


def mentioned_letters(text: str, *, letters: str) -> set[str]:
    """All option letters that stand alone in `text` as capitals or in brackets; the article "A" is none."""
    return _mentioned(words.alike(text), letters)


def _mentioned(text: str, letters: str) -> set[str]:
    patterns = _patterns(letters)
    found = {match[1].upper() for match in patterns.bracketed.finditer(text)}
    for match in patterns.alone.finditer(text):
        article = match[0] == "A" and _ARTICLE.match(text, match.end()) and not _VERB.match(text, match.end())
        if not article:
            found.add(match[0])
    return found


@dataclass(frozen=True, kw_only=True)
class _Patterns:
    """The patterns for one set of letters; the languages' by their names."""

    any: re.Pattern[str]
    alone: re.Pattern[str]
    bracketed: re.Pattern[str]
    hedge: re.Pattern[str]
    lead: re.Pattern[str]
    mark: re.Pattern[str]
    verdicts: Mapping[str, Sequence[re.Pattern[str]]]
    negations: Mapping[str, Sequence[re.Pattern[str]]]


@lru_cache(maxsize=64)
def _patterns(letters: str) -> _Patterns:
    behind = rf"(?![{words.LATIN}])(?!'(?:s\b|[A-Z]))"  # no "A's"; but Turkish writes "B'dir"
    alone = rf"(?<![{words.LATIN}])(?<![{words.LATIN}]')[{letters}]{behind}"
    last = rf"[{letters.lower()}](?=[\s.)\]\"']{{0,5}}$)"  # "the answer is b."
    letter = rf"[\"'$(\[<]{{0,2}}(?<![{words.LATIN}])({alone}|{last})"

    def compiled(pattern: str) -> re.Pattern[str]:
        # The words in any case, the letter as it stands.
        start, _, end = pattern.format(L="\0").partition("\0")
        return re.compile(f"(?i:{start}){letter}(?i:{end})")

    native = f"{words.UNSPACED}{words.HANGUL}"
    return _Patterns(
        any=re.compile(rf"{alone}|(?<![{words.LATIN}]){last}|\([{letters.lower()}]\)"),
        alone=re.compile(alone),
        bracketed=re.compile(rf"\(([{letters}{letters.lower()}])\)"),
        hedge=compiled(words.HEDGE),
        lead=re.compile(rf"[(\[]?([{letters}])(?:[).:\]](?=\s|$|[{native}])|,(?=[{words.UNSPACED}]))"),
        mark=re.compile(rf"(?:^|(?<=[\s,;{words.UNSPACED}]))[(\[]?([{letters}])[).:\]](?=\s|$|[{native}])"),
        verdicts={name: tuple(map(compiled, language.verdicts)) for name, language in words.LANGUAGES.items()},
        negations={name: tuple(map(compiled, language.negations)) for name, language in words.LANGUAGES.items()},
    )


def _languages(text: str) -> list[str]:
    """The languages that `text` may be in."""
    latin = text.isascii()
    return [
        name
        for name, language in words.LANGUAGES.items()
        if language.script is None or (not latin and language.script.search(text))
    ]


def _without_denied(text: str, letters: str) -> str:
    """`text` without the letters that it says are wrong."""
    for language in _languages(text):
        for pattern in _patterns(letters).negations[language]:
            text = pattern.sub(" ", text)
    return text


def _verdict(text: str, letters: str) -> tuple[bool, str | None]:
    patterns = _patterns(letters)
    matches = [
        match for language in _languages(text) for pattern in patterns.verdicts[language] for match in pattern.finditer(text)
    ]
    if matches:
        last = max(matches, key=lambda match: match.start(1))
        hedged = patterns.hedge.match(text, last.end(1)) is not None
        return True, None if hedged else last[1].upper()
    conclusions = list(_CONCLUSION.finditer(text))
    if conclusions:
        named = _mentioned(text[conclusions[-1].end() :], letters)
        if len(named) == 1:
            return True, named.pop()
    return False, None


def _list_mark(text: str, letters: str) -> tuple[bool, str | None]:
    patterns = _patterns(letters)
    leads = patterns.lead.match(text)
    if leads and set(patterns.mark.findall(text)) <= {leads[1]}:
        return True, leads[1]
    return False, None


def _same(text: str, options: Mapping[str, str]) -> str | None:
    """The one option that is `text`."""
    same = [letter for letter, option in options.items() if option and option == text]
    return same[0] if len(same) == 1 else None
