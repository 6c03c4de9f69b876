"""Answers that nobody gave, from a seed: for the readers of answers, which must read them as somebody else's code does."""

import random
from typing import Any

TEXTS = [
    *(
        "a cat",
        "a dog",
        "cat",
        "red",
        "dark red",
        "Red",
        "blue box",
        "Solution A",
        "Solution B",
        "north-west",
        "3",
        "13",
        "1,000",
    ),
    *("0.5", "-5", "5", "C", "a", "A", "the A line", "snake_case", "a*b", "None", "NA", "null", "N/A", "yes", "no", "C++", "C"),
    *("it is hot", "hot", "None of the above", "猫", "红色的猫", "кошка", "ネコ", "قطة", "İzmir", "ẞ", "x" * 40),
]
LETTERS = "ABCDEFGHZ"
FRAMES = [
    *(
        "{l}",
        "({l})",
        "{l}.",
        "{l})",
        "{l}:",
        "**{l}**",
        "`{l}`",
        "[{l}]",
        "{{{l}}}",
        " {l}\n",
        "#{l}",
        "{l}!",
        '"{l}"',
        "'{l}'",
    ),
    *("{l}. {t}", "({l}) {t}", "{l}: {t}", "{l}, {t}", "{l} {t}", "{t}", "{t}.", "{t} ({l})", "{t} {l} {t}", "It is {t}."),
    *(
        "The answer is {l}.",
        "The answer is {l}",
        "the answer is ({l})",
        "The correct answer is **{l}**. Here's why: {t} is seen.",
    ),
    *("Answer: {l}", "Answer:{l}", "answer is **{l}**, as {t} shows and {m} does not", "ANSWER IS {l} {t} {t} {t} {t} {t}"),
    *("The answer  is\n{l}", "the answer is a {t}", "The answer is not {l}", "My answer is: {l}", "Option {l}", "Choice ({l})"),
    *("{l} or {m}", "{l} and {m}", "{l}/{m}", "{l}, {m}", "not {l} but {m}", "A {t} is {l}", "A {t}", "I see A {t}, so {l}"),
    *("{l} because the thing in the picture is {t}", "Between {l} and {m}, {l}", "{l} is closest", "Point {l}.", "I think {l}"),
    *("The point {l} is the closest to the camera since it stands in front of all", "Therefore, {l}", "so {l}", "Hence {t}"),
    *("Sorry, I can't help with images of people yet.", "I can't process this file. {l}", "Cannot determine the answer {t}"),
    *(
        "I'm sorry, but without the image provided {l}",
        "Failed to obtain answer via API",
        "Failed to obtain answer via API {l}",
    ),
    *(
        "Failed to obtain answer via API. {t}",
        "Failed to obtain answer via API The answer is {l}",
        "Z",
        "Z {t}",
        "",
        "nan",
        "None",
    ),
    *(
        "答案是{l}。",
        "答案：{l}",
        "（{l}）",
        "选{l}",
        "这是{t}",
        "{l}、{t}",
        "\u3000{l}\u3000",
        "Ответ: {l}",
        "정답은 {l}입니다.",
        "الإجابة هي {l}.",
    ),
    *(
        "\\boxed{{{l}}}",
        "$ {l} $",
        "{l}\u00a0",
        "{l}\u200b",
        "{l}\t{m}",
        "Step 1: {t}\nStep 2: {t}\nAnswer: {l}",
        "{l}" * 3,
        "{l} {l} {l}",
    ),
]
YES_NO = [
    *(
        "yes",
        "no",
        "Yes",
        "No",
        "YES",
        "NO",
        "y",
        "n",
        "Y",
        "N",
        "know",
        "not",
        "nothing",
        "notice",
        "yesterday",
        "none",
        "Yes,",
        "No.",
    ),
    *(
        "the",
        "answer",
        "is",
        "I",
        "see",
        "1,000",
        "3.5",
        "5.",
        ".5",
        "a",
        "есть",
        "是",
        "否",
        "не",
        "**Yes**",
        "`no`",
        "(yes)",
        "yes/no",
    ),
]
JOINTS = [
    " ",
    " ",
    " ",
    ", ",
    ". ",
    ".",
    "... ",
    "! ",
    "? ",
    "; ",
    "/",
    "-",
    "_",
    "\n",
    "\t",
    "(",
    ") ",
    '" ',
    "[",
    "]",
    "=",
    "+",
    "@",
    "",
]
JUNK = "ABCDZabyesno .,:;!?()[]{}*#_`-/\\\"'\n\t0123456789猫是（Ａ）。"


def options(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Multiple choice: {"choices": {letter: text}, "answer": text}; no text of an option is empty."""
    chance = random.Random(seed)
    return [{"choices": (choices := _choices(chance)), "answer": _answer(chance, choices)} for _ in range(count)]


def yes_no(count: int, *, seed: int) -> list[str]:
    """Answers to questions of yes or no."""
    chance = random.Random(seed)
    return [_yes_no(chance) for _ in range(count)]


def answer_of(chance: random.Random, choices: dict[str, str], letter: str | None) -> str:
    """An answer that means the option `letter`; None for any answer."""
    if letter is None:
        return _answer(chance, choices)
    return chance.choice(FRAMES[:30]).format(l=letter, m=letter, t=choices[letter])


def _choices(chance: random.Random) -> dict[str, str]:
    count = chance.choice((2, 3, 4, 4, 4, 5))
    return dict(zip(LETTERS, chance.sample(TEXTS, count), strict=False))


def _answer(chance: random.Random, choices: dict[str, str]) -> str:
    if chance.random() < 0.1:
        return "".join(chance.choices(JUNK, k=chance.randrange(30)))
    parts = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        known = chance.random() < 0.9
        letters = [*choices] if known else list(LETTERS + LETTERS.lower())
        texts = [*choices.values()] if known else TEXTS
        parts.append(chance.choice(FRAMES).format(l=chance.choice(letters), m=chance.choice(letters), t=chance.choice(texts)))
    return chance.choice((" ", "\n", ". ")).join(parts)


def _yes_no(chance: random.Random) -> str:
    if chance.random() < 0.1:
        return "".join(chance.choices(JUNK, k=chance.randrange(12)))
    words = [chance.choice(YES_NO[:10] if chance.random() < 0.3 else YES_NO) for _ in range(chance.choice((1, 1, 2, 3, 5)))]
    if chance.random() < 0.02:
        # As many full stops as VQA's rule takes away, and more; those behind a number are not among them.
        stop = chance.choice(("{}.", "x."))
        return " ".join([*(stop.format(n) for n in range(chance.choice((31, 32, 33)))), chance.choice(("yes.", "no."))])
    return chance.choice(("", "", "", " ", "...", "(")) + "".join(word + chance.choice(JOINTS) for word in words)
