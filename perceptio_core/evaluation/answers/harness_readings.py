"""Answers as VLMEvalKit and lmms-eval read them: each rule under its own name, equal to a named state of that code.

Many published figures are read by these rules, VLMEvalKit's without its judge model. They stand beside the project's own
reading (`perceptio_core.evaluation.answers.options`) and never in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

VLMEVALKIT = "VLMEvalKit as ms-vlmeval 0.0.20"
VLMEVALKIT_MAIN = "VLMEvalKit's main branch at e8e78f05 (2026-08-18)"
LMMS_EVAL = "lmms-eval 0.7.3"
MME_TOOL = "MME's own calculation.py"


@dataclass(frozen=True, kw_only=True)
class OptionReading:
    """A rule that reads the option out of an answer.

    Attributes:
        source: whose rule, with its version.
        read: (answer, text of the options by letter) -> letter, or None.
    """

    source: str
    read: Callable[[str, Mapping[str, str]], str | None]


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NO_ANSWER = "Failed to obtain answer via API"
_TAIL = 4  # words at the end, among which the letter must stand for the first time
_DECLARED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL"),
    *("NaN", "None", "n/a", "nan", "null"),
}
"""What pandas takes for a missing value: VLMEvalKit reads options and answers with it."""


def read_vlmevalkit_option(text: str, choices: Mapping[str, str], *, declared: bool = False) -> str | None:
    """The option by VLMEvalKit's exact matching, or None (its False and its Z).

    After ``can_infer`` in ``vlmeval/utils/matching_util.py``: the one option letter among the words, if it stands among the
    last four for the first time; else the one option whose text the answer contains. As its tables are read by pandas, an
    option "None" or "NA" does not exist, and an empty answer is the text "nan". Not taken over: with the environment
    variable VERBOSE set, that code drops an A in a longer answer.

    Args:
        text: the answer.
        choices: text of the options by letter.
        declared: whether "answer is B" counts where the words do not decide: the main branch's later rule.
    """
    choices = {letter: choice for letter, choice in choices.items() if choice not in _MISSING}
    text = "nan" if text in _MISSING else text
    if _NO_ANSWER not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return None
        words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
        named = [letter for letter in choices if letter in words]
        if len(named) == 1 and words.index(named[0]) >= len(words) - _TAIL:
            return named[0]
        if not named and "Z" in words:
            return None
        if declared and (match := _DECLARED.search(text)) and match[1].upper() in choices:
            return match[1].upper()
    lowered = text.lower()
    if len(lowered) > 2 * sum(len(choice) for choice in choices.values()):
        return None
    contained = [letter for letter, choice in choices.items() if choice.lower() in lowered]
    return contained[0] if len(contained) == 1 else None


def read_vlmevalkit_main_option(text: str, choices: Mapping[str, str]) -> str | None:
    """The same by the main branch: since June 2026 "The correct answer is **B**. Here's why: ..." is B there."""
    return read_vlmevalkit_option(text, choices, declared=True)


OPTION_READINGS: Mapping[str, OptionReading] = {
    "vlmevalkit": OptionReading(source=VLMEVALKIT, read=read_vlmevalkit_option),
    "vlmevalkit_main": OptionReading(source=VLMEVALKIT_MAIN, read=read_vlmevalkit_main_option),
}
"""By the name that a metric has behind its slash."""


def read_mme_tool(text: str) -> str:
    """yes, no or other, as the benchmark's own ``calculation.py``: by the first four characters."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def read_lmms_eval(text: str) -> str:
    """yes, no or other, as lmms-eval's MME: trimmed, without full stops; a lone y or n counts."""
    trimmed = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(trimmed) or read_mme_tool(trimmed)


def read_vlmevalkit(text: str) -> str:
    """yes, no or unknown, as VLMEvalKit: exactly one of the words yes and no occurs, after VQA's punctuation rule."""
    words = set(_vqa_punctuation(text.lower()).split())
    return {(True, False): "yes", (False, True): "no"}.get(("yes" in words, "no" in words), "unknown")


def _vqa_punctuation(text: str) -> str:
    """VQA's rule: a mark is dropped if it touches a space anywhere or a number like 1,000 occurs, else it is a space."""
    thousands = re.search(r"\d,\d", text) is not None
    spaced = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        touches_space = f"{mark} " in text or f" {mark}" in text
        spaced = spaced.replace(mark, "" if thousands or touches_space else " ")
    return re.sub(r"(?<!\d)\.(?!\d)", "", spaced, count=32)  # 32 is re.UNICODE, which that scorer passes as the count


@dataclass(frozen=True, kw_only=True)
class YesNoReading:
    """A rule that reads yes or no out of an answer.

    Attributes:
        source: whose rule, with its version.
        read: answer -> yes, no, or another word where it is neither.
    """

    source: str
    read: Callable[[str], str]


YES_NO_READINGS: Mapping[str, YesNoReading] = {
    "official": YesNoReading(source=MME_TOOL, read=read_mme_tool),
    "lmms_eval": YesNoReading(source=LMMS_EVAL, read=read_lmms_eval),
    "vlmevalkit": YesNoReading(source=VLMEVALKIT, read=read_vlmevalkit),
}
"""MME's three readings by name; the first is the headline's. VLMEvalKit's main branch reads as its release does."""
