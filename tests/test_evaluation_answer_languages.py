"""Golden tables of the project's own reading of options, one per language: what a person reads in the answer."""

import pytest

from perceptio_core.evaluation.answers.options import mentioned_letters, parse_option

ANIMALS = {"A": "猫", "B": "狗", "C": "红色的盒子", "D": "以上都不是"}
SIDES = {"A": "左边", "B": "右边", "C": "上面"}
CHINESE = [
    # the letter beside Chinese characters
    ("答案是B。", ANIMALS, "B"),
    ("答案：B", ANIMALS, "B"),
    ("答案为 B", ANIMALS, "B"),
    ("正确答案是选项C。", ANIMALS, "C"),
    ("正确选项是D", ANIMALS, "D"),
    ("选B", ANIMALS, "B"),
    ("应该选择C", ANIMALS, "C"),
    ("我認為應該選 A", ANIMALS, "A"),
    ("我選擇 B", ANIMALS, "B"),
    ("選 A", ANIMALS, "A"),
    ("選項B", ANIMALS, "B"),
    ("选项B", ANIMALS, "B"),
    ("故选D。", ANIMALS, "D"),
    ("B是正确的", ANIMALS, "B"),
    ("B选项正确。", ANIMALS, "B"),
    ("图中是B", ANIMALS, "B"),
    ("我认为是B，因为它有尾巴。", ANIMALS, "B"),
    # width, brackets, marks
    ("Ｂ", ANIMALS, "B"),
    ("（B）", ANIMALS, "B"),
    ("（Ｂ）", ANIMALS, "B"),
    ("【C】", ANIMALS, "C"),
    ("「A」", ANIMALS, "A"),
    ("Ⓑ", ANIMALS, "B"),
    ("B。", ANIMALS, "B"),
    ("答案是“B”。", ANIMALS, "B"),
    ("答案：**B**", ANIMALS, "B"),
    ("答案是（Ｂ）", ANIMALS, "B"),
    ("Ｂ．狗", ANIMALS, "B"),
    # list marks
    ("B.狗", ANIMALS, "B"),
    ("B、狗", ANIMALS, "B"),
    ("B：狗", ANIMALS, "B"),
    ("B 狗", ANIMALS, "B"),
    ("A. 猫 B. 狗", ANIMALS, None),
    # the text of an option
    ("狗", ANIMALS, "B"),
    ("狗。", ANIMALS, "B"),
    ("这是一只狗。", ANIMALS, "B"),
    ("图中的动物是猫", ANIMALS, "A"),
    ("红色的盒子", ANIMALS, "C"),
    ("以上都不是", ANIMALS, "D"),
    ("图片里有猫和狗", ANIMALS, None),
    ("这不是猫，是狗", ANIMALS, "B"),
    ("没有猫", ANIMALS, None),
    ("猫在左边。", SIDES, "A"),
    ("球在盒子的上面", SIDES, "C"),
    ("这是一只熊猫", {"A": "猫", "B": "熊猫"}, "B"),
    ("这是猫", {"A": "猫", "B": "熊猫"}, "A"),
    ("是", {"A": "是", "B": "否"}, "A"),
    ("是的，图中有一只猫。", {"A": "是", "B": "否"}, "A"),
    ("否", {"A": "是", "B": "否"}, "B"),
    ("这是一只猫", {"A": "是", "B": "否"}, None),
    ("没有", {"A": "有", "B": "没有"}, "B"),
    ("图中没有猫", {"A": "有", "B": "没有"}, "B"),
    ("有3个", {"A": "3", "B": "13"}, "A"),
    ("一共有13个苹果", {"A": "3", "B": "13"}, "B"),
    ("品牌是Apple。", {"A": "Apple", "B": "Samsung"}, "A"),
    # verdicts of several, hedges, denials
    ("A选项是猫，B选项是狗。所以答案是B。", ANIMALS, "B"),
    ("选项A描述的是左边，选项B描述的是右边，因此选B。", ANIMALS, "B"),
    ("不是A，而是B。", ANIMALS, "B"),
    ("答案不是A，而是C", ANIMALS, "C"),
    ("A不正确，B正确", ANIMALS, "B"),
    ("答案不是A", ANIMALS, None),
    ("答案是A或B", ANIMALS, None),
    ("答案是A和C", ANIMALS, None),
    ("A或者B", ANIMALS, None),
    ("A、B", ANIMALS, None),
    ("因此，C更合适", ANIMALS, "C"),
    ("离相机最近的点是B", None, "B"),
    ("B点离相机最近。", None, "B"),
    ("我不知道。", ANIMALS, None),
    ("图中有一张A4纸", ANIMALS, None),
    ("他戴着NBA的帽子", ANIMALS, None),
]
DRINKS = {"A": "コーヒー", "B": "お茶", "C": "赤いワイン", "D": "水"}
JAPANESE = [
    ("答えはBです。", DRINKS, "B"),
    ("正解は（B）です。", DRINKS, "B"),
    ("答え：Ｂ", DRINKS, "B"),
    ("選択肢Cが正解です。", DRINKS, "C"),
    ("Bです", DRINKS, "B"),
    ("Bを選びます。", DRINKS, "B"),
    ("B。お茶", DRINKS, "B"),
    ("「お茶」", DRINKS, "B"),
    ("これはコーヒーです。", DRINKS, "A"),
    ("AではなくBです。", DRINKS, "B"),
    ("Aは正しくありません。", DRINKS, None),
    ("Aは正解ではありません。Bが正解です。", DRINKS, "B"),
    ("AまたはBです", DRINKS, None),
    ("答えはAかBです", DRINKS, None),
    ("したがって、Dです。", DRINKS, "D"),
    ("わかりません", DRINKS, None),
]
PETS = {"A": "고양이", "B": "강아지", "C": "빨간 상자", "D": "없음"}
KOREAN = [
    ("정답은 B입니다.", PETS, "B"),
    ("정답: B", PETS, "B"),
    ("답은 (C)입니다", PETS, "C"),
    ("B입니다", PETS, "B"),
    ("B가 정답입니다.", PETS, "B"),
    ("B. 강아지", PETS, "B"),
    ("Ｂ", PETS, "B"),
    ("고양이", PETS, "A"),
    ("이것은 고양이입니다.", PETS, "A"),
    ("빨간 상자입니다", PETS, "C"),
    ("A가 아니라 B입니다.", PETS, "B"),
    ("정답은 A 또는 B입니다.", PETS, None),
    ("A와 B", PETS, None),
    ("따라서 D입니다.", PETS, "D"),
    ("모르겠습니다", PETS, None),
]
THINGS = {"A": "кошка", "B": "собака", "C": "красная коробка", "D": "кот"}
RUSSIAN = [
    ("Ответ: B", THINGS, "B"),
    ("Ответ — B.", THINGS, "B"),
    ("Правильный ответ: C.", THINGS, "C"),
    ("Правильный вариант — D", THINGS, "D"),
    ("Вариант B", THINGS, "B"),
    ("B. собака", THINGS, "B"),
    ("В", THINGS, "B"),  # Cyrillic
    ("Ответ: В.", THINGS, "B"),  # Cyrillic
    ("В центре — кошка", THINGS, "A"),  # here the Cyrillic letter is a word
    ("На картинке собака.", THINGS, "B"),
    ("красная коробка", THINGS, "C"),
    ("Собака", THINGS, "B"),
    ("который", THINGS, None),  # "кот" is only a part of it
    ("Это не кошка, это собака", THINGS, "B"),
    ("не A, а B", THINGS, "B"),
    ("Ответ: A или B", THINGS, None),
    ("Поэтому C", THINGS, "C"),
    ("Не знаю", THINGS, None),
]
ARABIC_CHOICES = {"A": "قطة", "B": "كلب", "C": "صندوق أحمر", "D": "لا شيء"}
ARABIC = [
    ("الإجابة هي B.", ARABIC_CHOICES, "B"),
    ("الإجابة الصحيحة هي C", ARABIC_CHOICES, "C"),
    ("الجواب: (B)", ARABIC_CHOICES, "B"),
    ("\u200fB\u200f", ARABIC_CHOICES, "B"),
    ("الخيار B", ARABIC_CHOICES, "B"),
    ("B. كلب", ARABIC_CHOICES, "B"),
    ("كلب", ARABIC_CHOICES, "B"),
    ("هذا كلب.", ARABIC_CHOICES, "B"),
    ("القطة", ARABIC_CHOICES, "A"),
    ("كَلْب", ARABIC_CHOICES, "B"),  # with vowel signs
    ("ليس A بل B", ARABIC_CHOICES, "B"),
    ("الإجابة هي A أو B", ARABIC_CHOICES, None),
    ("لذلك D", ARABIC_CHOICES, "D"),
    ("لا أعرف", ARABIC_CHOICES, None),
]
LATIN = [
    ("A resposta é B.", {"A": "um gato", "B": "um cão"}, "B"),
    ("A resposta correta é a letra C", None, "C"),
    ("um cão", {"A": "um gato", "B": "um cão"}, "B"),
    ("Doğru cevap B'dir.", {"A": "kedi", "B": "köpek"}, "B"),
    ("Cevap: C", None, "C"),
    ("köpek", {"A": "kedi", "B": "köpek"}, "B"),
]
TABLES = {
    "zh": CHINESE,
    "ja": JAPANESE,
    "ko": KOREAN,
    "ru": RUSSIAN,
    "ar": ARABIC,
    "pt, tr": LATIN,
}


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [pytest.param(*row, id=f"{language}: {row[0]}") for language, rows in TABLES.items() for row in rows],
)
def test_reading(text: str, choices: dict[str, str] | None, expected: str | None) -> None:
    assert parse_option(text, letters="".join(choices or "ABCD"), choices=choices) == expected


MARKED = {"A": "snake_case", "B": "a*b", "C": "`x`", "D": "**"}


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        # Markdown's own marks in the text of an option
        ("snake_case", MARKED, "A"),
        ("`snake_case`", MARKED, "A"),
        ("It is snake_case.", MARKED, "A"),
        ("The name is **snake_case**", MARKED, "A"),
        ("a*b", MARKED, "B"),
        ("The product is a*b.", MARKED, "B"),
        ("`x`", MARKED, "C"),
        ("**", MARKED, "D"),
        ("变量名是snake_case。", MARKED, "A"),
        ("snake_case", {"A": "snakecase", "B": "snake_case"}, "B"),
        ("snakecase", {"A": "snakecase", "B": "snake_case"}, "A"),
        ("*", {"A": "+", "B": "*"}, "B"),
        # texts that differ by marks, and texts in which a letter stands first
        ("-5", {"A": "5", "B": "-5"}, "B"),
        ("It is -5.", {"A": "5", "B": "-5"}, "B"),
        ("It is 5.", {"A": "5", "B": "-5"}, "A"),
        ("It is 0.5", {"A": "5", "B": "0.5"}, "B"),
        ("It costs 1,000.", {"A": "1", "B": "1,000"}, "B"),
        ("C++", {"A": "C", "B": "C++", "C": "Java"}, "B"),
        ("C#", {"A": "C#", "B": "C++", "C": "Java"}, "A"),
        ("C", {"A": "C#", "B": "C++", "C": "Java"}, "C"),
        ("$5", {"A": "5", "B": "$5"}, "B"),
        ("It is dark red.", {"A": "red", "B": "dark red"}, "B"),
        ("It is dark red or red.", {"A": "red", "B": "dark red"}, None),
        ("It is not red.", {"A": "red", "B": "blue"}, None),
        ("It is not red, it is blue.", {"A": "red", "B": "blue"}, "B"),
    ],
)
def test_texts_with_marks(text: str, choices: dict[str, str], expected: str | None) -> None:
    assert parse_option(text, letters="".join(choices), choices=choices) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # open-compass/VLMEvalKit#1552: verbose answers that declare the letter first
        ("The correct answer is **B**. Here's why: option A shows a cat, and option C a box.", "B"),
        ("The correct answer is B. Here's why... option B is correct because it fits.", "B"),
        # open-compass/VLMEvalKit#552: a letter with its noun
        ("选项B", "B"),
        # open-compass/VLMEvalKit#1591: the prompt's template echoed
        ("Answer: $B", "B"),
        ("Answer: $B$", "B"),
        # sgl-project/sglang#24084, #23864: options first, then the box; the last of several commitments
        ("(A) is a cat, (B) is a dog, (C) is a box.\n\\boxed{B}", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("\\boxed{B}.", "B"),
        ("(A) a cat (B) a dog (C) a box (D) a bus\nAnswer: **(C)**", "C"),
        # openai/evals#1767: no prefix of a word; the last answer counts
        ("ANSWER: AB", None),
        ("ANSWER: A ... actually, ANSWER: B", "B"),
        # ai-twinkle/Eval#156: "choose B" without a closing mark, in traditional characters
        ("我選擇 B", "B"),
        ("應選 (A)", "A"),
        # zai-org/GLM-V#156: tokens of a box
        ("A is a temple. Therefore, the answer is <|begin_of_box|>B<|end_of_box|><|user|>", "B"),
        # vllm-project/tpu-inference#3518: the answer, not the reasoning before it
        ("<think>The answer is A. No, it may be C.</think>\n\nB", "B"),
        ("<think>The answer is A.</think>", None),
        # ours
        ("C looks red, D blue. <answer>B</answer>", "B"),
        ("The answer is 'B'.", "B"),
        ("The answer is b.", "B"),
        ("The answer is not A.", None),
        ("It is not A, it is B", "B"),
        ("A is wrong. B is wrong. C is left.", "C"),
        ("Neither A nor B", None),
        ("The answer is a cat", None),
    ],
)
def test_reports_of_others(text: str, expected: str | None) -> None:
    assert parse_option(text, letters="ABCD") == expected


def test_letters_that_are_named_in_any_script() -> None:
    assert mentioned_letters("（A）或B点", letters="ABC") == {"A", "B"}
    assert mentioned_letters("NBA的帽子", letters="ABC") == set()
    assert mentioned_letters("\\boxed{A} red", letters="ABC") == {"A"}


@pytest.mark.parametrize(
    "unit", ["答案", "是", "猫", "狗不是", "ＡＢ", "选A不对，", "最近", "ﷺ", "א", "정답은 ", "\\boxed{", "not red ", "red"]
)
def test_long_answers_in_any_script_are_read_in_linear_time(unit: str) -> None:
    choices = {"A": "猫", "B": "是", "C": "red", "D": "狗"}
    short, long = (parse_option(unit * (size // len(unit)), letters="ABCD", choices=choices) for size in (2_000, 200_000))
    assert long == short
