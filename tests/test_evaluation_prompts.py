"""The prompt of every benchmark, word for word: a changed prompt is another benchmark, so it must not change unseen."""

from pathlib import Path

import pytest

from official_files import answers, by_name, png, rotations, small_benchmark, write_mmbench
from perceptio_core.evaluation.benchmarks.choice_prompt import REQUESTS, choice_prompt, table_language
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(samples=100)
ENDING = "Answer with the option's letter from the given choices directly."
PROMPTS = {
    "refer": "Please segment left in this image.",
    "grefcoco": "Please segment s0 in this image.",
    "reasonseg": "Please segment the tap in this image.",
    "hardblink": "Which?",  # the files bring the whole prompt, as those of MME and BLINK do
    "mme": "Is it x?",
    "blink": "Which point is closer to the camera?\nSelect from the following choices.\n(A) A is closer\n(B) B is closer",
    "mmbench_tsv": f'Say "it"\nin two lines\nA. cat\nB. NA\n{ENDING}',
    "seed": f"How many?\nA. one\nB. two\nC. three\nD. four\n{ENDING}",
    "seed_table": f"Which?\nA. leaf\nB. root\n{ENDING}",
    "ai2d": f"Which?\nA. leaf\nB. root\n{ENDING}",
    "scienceqa": f"Which?\nA. leaf\nB. root\nC. stem\n{ENDING}",
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompt(tmp_path: Path, kind: str) -> None:
    benchmark, _ = small_benchmark(kind, tmp_path)
    by_id = sorted(benchmark.items, key=lambda item: item.item_id) if kind == "mme" else list(benchmark.items)
    question = next(item.question for item in by_id)
    assert question == PROMPTS[kind]


@pytest.mark.parametrize(
    ("name", "questions", "language"),
    [
        ("MMBench_DEV_EN", ["What is it?", "Which one?", "What does the sign 出口 say?"], "en"),
        (
            "MMBench_DEV_CN",
            ["图中是什么?", "Harry Potter and the Goblet of Fire 的作者是谁?"],
            "zh",
        ),
        ("renamed", ["圖中是什麼?"], "zh"),
        ("x", ["この画像は何ですか？", "何色ですか？", "総数？"], "ja"),
        ("x", ["이것은 무엇입니까?"], "ko"),
        ("mmbench_dev_ru", ["Что это?"], "ru"),
        ("mmbench_dev_ar", ["ما هذا؟"], "ar"),
        ("mmbench_dev_pt", ["O que é isso?"], "pt"),
        ("mmbench_dev_tr", ["Bu nedir?"], "tr"),
        ("empty", [], "en"),
    ],
)
def test_the_language_of_a_table(name: str, questions: list[str], language: str) -> None:
    assert table_language(Path(f"{name}.tsv"), questions) == language
    assert choice_prompt("?", {"A": "x"}, language=language) == f"?\nA. x\n{REQUESTS[language]}"


def test_mmbench_cn_is_asked_and_read_in_chinese(tmp_path: Path) -> None:
    """From the table to the score: every rotation answered as Chinese models do."""
    rows = rotations(1, ["猫", "狗", "红色的盒子"], "狗", png(1)) + rotations(2, ["左边", "右边"], "右边", png(2))
    rows = [{**row, "question": "图中是什么？", "hint": "看图。"} for row in rows]
    benchmark = MMBench(write_mmbench(tmp_path / "MMBench_DEV_CN.tsv", rows))
    assert benchmark.items[0].question == "看图。\n图中是什么？\nA. 猫\nB. 狗\nC. 红色的盒子\n请直接回答选项字母。"
    expected = {item.item_id: item.expected for item in benchmark.items}
    forms = ["答案是{}。", "（{}）", "图中是{}选项", "故选{}", "在右边。"]
    said = {key: form.format(letter) for form, (key, letter) in zip(forms, expected.items(), strict=True)}
    scores = benchmark.score(answers(said), bootstrap=BOOTSTRAP)
    assert (scores.headline[0].value, scores.unparsed) == (100.0, 0)
    assert "Perceptio's reading, version 2" in scores.headline[0].protocol
    parts = by_name(scores.breakdown)
    # VLMEvalKit parts words by blanks alone, and leaves these answers to its judge.
    assert parts["mmbench/vlmevalkit"].value == 0.0
    assert "ms-vlmeval 0.0.20" in parts["mmbench/vlmevalkit"].protocol
    assert "e8e78f05" in parts["mmbench/vlmevalkit_main"].protocol
