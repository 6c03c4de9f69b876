"""The multiple-choice prompt: hint, question, one option a line, the request to answer by letter in the language of the table.

The form is that of LLaVA in VLMEvalKit, and of lmms-eval's SEED-Bench, AI2D and ScienceQA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

REQUESTS: Mapping[str, str] = {
    "en": "Answer with the option's letter from the given choices directly.",
    "zh": "请直接回答选项字母。",
    "ja": "与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。",
    "ko": "주어진 선택지 중 해당 옵션의 문자로 바로 답하세요.",
    "ru": "Ответьте буквой варианта из предложенных вариантов напрямую.",
    "ar": "أجب مباشرةً بحرف الخيار من الاختيارات المعطاة.",
    "pt": "Responda diretamente com a letra da opção das escolhas dadas.",
    "tr": "Verilen seçeneklerden doğrudan seçeneğin harfi ile cevap verin.",
}
"""Last line of a prompt. en, zh: LLaVA and InternVL in VLMEvalKit (en: lmms-eval too); ar, pt, ru, tr: Parrot in VLMEvalKit, on
the translations of MMBench; ko: lmms-eval's mmbench_ko; ja: lmms-eval's jmmmu."""

_SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "zh": re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "ru": re.compile("[\u0400-\u04ff]"),
    "ar": re.compile("[\u0600-\u06ff]"),
}
"""Japanese first: it has Chinese characters too."""
_NAMED = re.compile(r"_(pt|tr)$", re.IGNORECASE)


def choice_prompt(question: str, choices: Mapping[str, str], *, hint: str = "", language: str = "en") -> str:
    """A multiple-choice prompt.

    Args:
        question: the question.
        choices: text of the options by letter.
        hint: what stands before the question; empty for nothing.
        language: one of `REQUESTS`.
    """
    options = [f"{letter}. {choice}" for letter, choice in choices.items()]
    return "\n".join([*([hint] if hint else []), question, *options, REQUESTS[language]])


def table_language(file: Path, questions: Iterable[str]) -> str:
    """The language of a table: that whose script stands in most of its questions, so that a foreign word changes nothing.

    Languages in Latin script are told apart by the end of the file's name, as in ``mmbench_dev_pt.tsv``.
    """
    asked = list(questions)
    for language, script in _SCRIPTS.items():
        if sum(script.search(question) is not None for question in asked) > len(asked) / 2:
            return language
    named = _NAMED.search(file.stem)
    return named[1].lower() if named else "en"
