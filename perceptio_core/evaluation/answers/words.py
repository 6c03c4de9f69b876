"""What the languages of the benchmarks' tables say around an option letter, and how their characters are made alike.

The languages are those of MMBench and of its translations, and of benchmarks like it: English, Chinese in both scripts,
Japanese, Korean, Russian, Arabic, Portuguese with Spanish, Turkish. Which an answer is in is told by its characters: a model
may answer in another language than it was asked in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

_RANGES = ((0x2460, 0x24EA), (0x1D400, 0x1D800), (0x1F110, 0x1F16A), (0xFF01, 0xFF5F))
"""Circled, bracketed, mathematical and full-width forms."""
_MARKS = {
    ".": "。｡．۔",
    ",": "、،﹐",
    ";": "؛",
    "?": "؟",
    ":": "﹕",
    "(": "﹙",
    ")": "﹚",
    "[": "【〔〖",
    "]": "】〕〗",
    '"': "「」『』《》«»“”„",
    "'": "’‘´",
    "-": "–—―−",
    "...": "…",
    "е": "ё",
    "Е": "Ё",
}
_ALIKE = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for bounds in _RANGES for code in range(*bounds)},
    **{code: chr(code - 0x1F170 + ord("A")) for code in range(0x1F170, 0x1F18A)},  # white on black
    **{ord(form): mark for mark, forms in _MARKS.items() for form in forms},
    # Marks of direction, of no width, and the vowel signs and stretching of Arabic, which are written or left out at will.
    **dict.fromkeys([0xAD, 0x61C, 0xFEFF, 0x640, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]),
    **dict.fromkeys(range(0x64B, 0x653)),
}
_STYLED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}\n]{0,200})\}")
_BOXED = re.compile(r"\$*\s?\\(?:boxed|fbox)\s?\{(.*)\}[.$\s]*", re.DOTALL)
_BLANKS = re.compile(r"\s{2,}|[^\S \n]")
_MARKDOWN = re.compile(r"[*_`#]+")

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
"""Characters of scripts that do not part words by blanks: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
HANGUL = "\uac00-\ud7af\u1100-\u11ff\u3130-\u318f"
"""Korean parts words, but writes particles behind them without a blank."""
LATIN = "A-Za-z0-9_\u00c0-\u024f"
"""What an option letter would be part of a word with."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """How a language speaks of an option letter; in the patterns ``{L}`` stands for the letter, and case does not count.

    Attributes:
        script: finds a character of its script; None for Latin.
        verdicts: what says that the letter is the answer.
        negations: what says that it is not.
    """

    script: re.Pattern[str] | None
    verdicts: tuple[str, ...]
    negations: tuple[str, ...]


_NOUN = r"(?:the\s+)?(?:correct\s+)?(?:option|choice|point|letter)\s+"
_CHINESE_NOUN = r"(?:选项|選項|选择|選擇|字母|点|點|第)"
_ITEM = r"\)?\s*(?:选项|選項|项|項|点|點)?\s*"

LANGUAGES: Mapping[str, Language] = {
    "en": Language(
        script=None,
        verdicts=(
            rf"\banswer\b\s*(?:is|was|would\s+be|should\s+be|must\s+be)?\s*[:=]?\s*(?:{_NOUN})?{{L}}",
            rf"\b(?:closest|nearest)\b[^.\n]{{{{0,200}}}}?(?:\b(?:is|be)\b|:)\s*(?:{_NOUN})?{{L}}",
            r"{L}\)?\s+(?:is|seems|appears|looks|would\s+be|must\s+be)\s+(?:to\s+be\s+)?(?:the\s+)?(?:closest|nearest|correct)\b",
            r"(?:\\(?:boxed|fbox)\s?\{{|<answer>|<\|begin_of_box\|>)\s?\(?{L}",
        ),
        negations=(
            rf"\b(?:not|neither|nor|cannot\s+be|can't\s+be|isn't|rather\s+than)\s+(?:be\s+)?(?:{_NOUN})?{{L}}",
            r"{L}\)?\s+(?:(?:is|was)\s+not|isn't|is\s+(?:wrong|incorrect|false))\b",
        ),
    ),
    "pt, es": Language(
        script=None,
        verdicts=(
            r"\b(?:resposta|respuesta)(?:\s+(?:correta|correcta))?\s*(?:é|es)?\s*:?\s*(?:a\s+|la\s+)?"
            r"(?:letra|opção|opción|alternativa)?\s*{L}",
        ),
        negations=(r"\b(?:não|no)\s+(?:é|es)\s+(?:a\s+|la\s+)?(?:letra|opção|opción)?\s*{L}",),
    ),
    "tr": Language(
        script=None,
        verdicts=(r"\b(?:cevap|cevabı|yanıt|seçenek)\s*:?\s*(?:seçenek)?\s*{L}",),
        negations=(r"{L}'?\w{{0,3}}\s+değil",),
    ),
    "zh": Language(
        script=re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"),
        verdicts=(
            rf"(?:答案|正解)\s*(?:应该?|應該?|就)?\s*(?:是|为|為|选|選)?\s*[:=]?\s*{_CHINESE_NOUN}?\s*{{L}}",
            # "Choose B", but "option B" alone only names it.
            r"(?:选|選)(?:择|擇|取)?\s*(?:答案|选项|選項)?\s*(?:是|为|為)?\s*[:=]?\s*{L}",
            rf"(?:正确|正確|对|對)的?(?:选项|選項|选择|選擇)\s*(?:应该?|應該?)?\s*(?:是|为|為)?\s*[:=]?\s*{_CHINESE_NOUN}?\s*{{L}}",
            rf"最(?:近|接近|靠近)[^.\n]{{{{0,200}}}}?(?:是|为|為|:)\s*{_CHINESE_NOUN}?\s*{{L}}",
            rf"{{L}}{_ITEM}(?:是|最为|最為)?\s*(?:最\s*)?(?:正确|正確|对的|對的|近|接近|靠近)",
            rf"{{L}}{_ITEM}(?:离|離|距)[^.,\n]{{{{0,20}}}}最近",
        ),
        negations=(
            r"(?:不是|不选|不選|并非|並非|而非|不会是)\s*(?:选项|選項)?\s*{L}",
            rf"{{L}}{_ITEM}(?:是)?\s*(?:不正确|不正確|不对|不對|不是|不符|错|錯)",
        ),
    ),
    "ja": Language(
        script=re.compile("[\u3040-\u30ff\u4e00-\u9fff]"),
        verdicts=(
            r"(?:答え|回答|解答|正解|正答)\s*(?:は|が)?\s*[:=]?\s*(?:選択肢)?\s*{L}",
            r"{L}\)?\s*(?:が|を)?\s*(?:正解|正しい|選び|選択し|最も近い)",
        ),
        negations=(
            r"{L}\)?\s*(?:は|が)?\s*(?:正解|正しい)?\s*(?:では(?:なく|ない|ありません)|じゃな|間違|不正解)",
            r"{L}\)?\s*(?:は|が)?\s*正しく(?:な|あり)",
        ),
    ),
    "ko": Language(
        script=re.compile("[\uac00-\ud7af]"),
        verdicts=(
            r"(?:정답|답변|답)\s*(?:은|는|이)?\s*[:=]?\s*(?:옵션|선택지|보기)?\s*{L}",
            r"{L}\)?\s*(?:가|이|를|을|번이|번을)?\s*(?:정답(?!이 아)|맞(?!지)|옳(?!지)|선택합|고르)",
        ),
        negations=(r"{L}\)?\s*(?:가|이|은|는)?\s*(?:정답이\s+)?(?:아니|아닙|틀)",),
    ),
    "ru": Language(
        script=re.compile("[\u0400-\u04ff]"),
        verdicts=(
            r"\b(?:ответ|правильн\w{{1,3}}|верн\w{{2,3}})(?:\s+(?:вариант|ответ|выбор))?(?:\s+ответа)?\s*(?:это)?\s*[-:=]?\s*"
            r"(?:вариант|буква)?\s*{L}",
            r"{L}\)?\s*-?\s*(?:это\s+)?(?:является\s+)?(?:правильн|верн)",
        ),
        negations=(r"\bне\s+(?:вариант\s+)?{L}", r"{L}\)?\s*-?\s*(?:это\s+)?(?:неправильн|неверн)"),
    ),
    "ar": Language(
        script=re.compile("[\u0600-\u06ff]"),
        verdicts=(
            r"(?:الإجابة|الاجابة|الجواب|الخيار)\s*(?:الصحيحة|الصحيح)?\s*(?:هي|هو)?\s*:?\s*(?:الخيار|الحرف)?\s*{L}",
            r"{L}\)?\s*(?:هي|هو)\s*(?:الإجابة|الجواب|الخيار)?\s*الصحيح",
        ),
        negations=(r"(?:ليس|ليست)\s*(?:الخيار)?\s*{L}",),
    ),
}

HEDGE = (
    r"\)?(?:\s*[/,]|\s*\b(?:or|and)\b|\s*(?:或者?|和|与|與|及|跟|还是|還是|または|か|と|や|또는|혹은|이나|나|와|과)"
    r"|\s+(?:или|и|أو|e|ou|veya|ve))\s*(?:选项|選項)?\s*\(?{L}"
)
"""What stands behind a verdict's letter where another letter is offered too."""

CONCLUSIONS = (
    r"\b(?:therefore|thus|hence|so|поэтому|следовательно|таким образом|portanto|dolayısıyla)\b"
    r"|因此|所以|综上|綜上|由此可见|故(?![事障乡宫意])|したがって|従って|よって|つまり|따라서|그러므로|لذلك|إذن|وبالتالي"
)
"""What begins the sentence that draws the conclusion."""

DENIALS = re.compile(
    r"(?:\b(?:not|no|never|isn't|не|não|нет)\s+(?:an?\s+|the\s+)?|(?:ليس|ليست)\s+|(?:不是|并非|並非|没有|沒有|不|没|沒|无|無|非|未)(?:一[只個个])?)$",
    re.IGNORECASE,
)
"""What stands right before the text of an option where the answer denies it."""

COPULAS = frozenset("是有在不无無对對能会會")
"""Chinese characters of which any sentence is full: an option that is one of them must stand alone."""

_LOOK_ALIKE = str.maketrans("АВСЕ", "ABCE")
_LAST_LOOK_ALIKE = re.compile(r"(?<!\w)([АВСЕ])(?=[\s.)\]\"']{0,5}$)")
"""A Cyrillic capital that closes the answer, and looks like one of the letters that were shown. Elsewhere it may be a word."""


def alike(text: str) -> str:
    """`text` with one form of each character: full-width and circled letters, brackets, marks and quotes as in ASCII."""
    if not text.isascii():
        text = _LAST_LOOK_ALIKE.sub(lambda found: found[1].translate(_LOOK_ALIKE), text.translate(_ALIKE))
    return _STYLED.sub(r"\1", text) if "\\" in text else text


def unboxed(text: str) -> str:
    """What stands in the box, where the whole text is a box of LaTeX."""
    boxed = _BOXED.fullmatch(text)
    return boxed[1] if boxed else text


def one_blank(text: str) -> str:
    """Runs of blanks as one; else the patterns would try every way to share a long run among themselves."""
    return _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", text).strip()


def without_markdown(text: str) -> str:
    """`text` without the marks of Markdown."""
    return _MARKDOWN.sub("", text)
