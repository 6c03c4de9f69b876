"""VLMEvalKit's and lmms-eval's readings: golden tables of what their code said, and that code itself where it is at hand.

``pytest -m on_request`` asks their code for 20,000 answers and for whole scores, if the environment names an interpreter that
has it (each in a virtual environment of its own; ``pip install --no-deps`` and what it then misses is enough):

- PERCEPTIO_VLMEVALKIT: python of an environment with ms-vlmeval 0.0.20
- PERCEPTIO_VLMEVALKIT_MAIN: a checkout of VLMEvalKit at e8e78f05, which the same interpreter runs
- PERCEPTIO_LMMS_EVAL: python of an environment with lmms-eval 0.7.3
"""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import made_up_answers
from perceptio_core.evaluation.answers.harness_readings import (
    LMMS_EVAL,
    OPTION_READINGS,
    VLMEVALKIT,
    YES_NO_READINGS,
    read_vlmevalkit,
    read_vlmevalkit_main_option,
    read_vlmevalkit_option,
)
from perceptio_core.evaluation.benchmarks.choice_prompt import choice_prompt
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.mme import COGNITION, MME, PERCEPTION
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.evaluation.interchange.rescore import rescore
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

GOLDEN = Path(__file__).parent / "golden"
COUNT = 20_000
BOOTSTRAP = Bootstrap(samples=100)


def golden(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


OPTIONS = golden("option_answers.jsonl")
YES_NO = golden("yes_no_answers.jsonl")


@pytest.mark.parametrize("reading", OPTION_READINGS)
def test_options_as_their_code_read_them(reading: str) -> None:
    """Rows of answer, choices, and the letter that each state of VLMEvalKit gave."""
    read = OPTION_READINGS[reading].read
    assert len(OPTIONS) >= 400
    assert [row for row in OPTIONS if read(row["answer"], row["choices"]) != row[reading]] == []


@pytest.mark.parametrize("reading", YES_NO_READINGS)
def test_yes_and_no_as_their_code_read_them(reading: str) -> None:
    """Rows of answer and what each scorer gave; MME's own rule was worked by hand from its calculation.py."""
    read = YES_NO_READINGS[reading].read
    assert len(YES_NO) >= 300
    assert [row for row in YES_NO if read(row["answer"]) != row[reading]] == []


def test_the_golden_tables_tell_the_rules_apart() -> None:
    assert sum(row["vlmevalkit"] != row["vlmevalkit_main"] for row in OPTIONS) >= 50
    assert sum(row["answer"].startswith("Failed to obtain answer via API") for row in OPTIONS) >= 10
    assert sum(len({row[reading].replace("unknown", "other") for reading in YES_NO_READINGS}) > 1 for row in YES_NO) >= 100


PAIR = {"A": "a cat", "B": "a dog", "C": "None"}


def test_what_the_tables_reader_does_to_options_and_answers() -> None:
    """Pandas takes "None" and "NA" for missing, as in MMStar-Benchmark/MMStar#12, and an empty answer is read as "nan"."""
    assert read_vlmevalkit_option("C", PAIR) is None
    assert read_vlmevalkit_option("None", PAIR) is None
    assert read_vlmevalkit_option("", {"A": "a", "B": "b"}) == "A"  # the text "nan" contains "a"


def test_a_notice_is_no_no() -> None:
    """As reported in open-compass/VLMEvalKit#73."""
    text = "Yes, the image is a photo of a cemetery. The photograph depicts a gravestone with a death notice."
    assert {reading: rule.read(text) for reading, rule in YES_NO_READINGS.items()} == dict.fromkeys(YES_NO_READINGS, "yes")


def ask(which: str, asked: dict[str, Any], *, python: str, checkout: bool = False) -> Any:
    """What the foreign code says; skips the test where it is not at hand."""
    interpreter = os.environ.get(python)
    main = os.environ.get("PERCEPTIO_VLMEVALKIT_MAIN") if checkout else ""
    if not interpreter or main is None:
        pytest.skip(f"{python}{' and PERCEPTIO_VLMEVALKIT_MAIN' if checkout else ''}: not set, so that code is not at hand")
    script = Path(__file__).with_name("harness_oracle.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": main}
    done = subprocess.run(
        [interpreter, str(script), which],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def letters(readings: list[str | None]) -> list[str | None]:
    """VLMEvalKit's Z stands for no option."""
    return [None if letter == "Z" else letter for letter in readings]


def existing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as VLMEvalKit's matching gets them: without what its table reader takes for missing."""
    lost = ("None", "NA", "null", "N/A", "nan", "")
    return [
        {
            "answer": "nan" if row["answer"] in lost else row["answer"],
            "choices": {letter: text for letter, text in row["choices"].items() if text not in lost},
        }
        for row in rows
    ]


@pytest.mark.on_request
def test_options_of_the_release() -> None:
    rows = made_up_answers.options(COUNT, seed=0) + OPTIONS
    said = ask("vlmevalkit", {"options": existing(rows), "yes_no": []}, python="PERCEPTIO_VLMEVALKIT")
    assert said["version"] in VLMEVALKIT
    ours = [read_vlmevalkit_option(row["answer"], row["choices"]) for row in rows]
    assert len(set(ours)) == 6
    assert ours == letters(said["options"])


@pytest.mark.on_request
def test_options_of_the_main_branch() -> None:
    rows = made_up_answers.options(COUNT, seed=0) + OPTIONS
    asked = {"options": existing(rows), "yes_no": [row["answer"] for row in YES_NO]}
    said = ask("vlmevalkit", asked, python="PERCEPTIO_VLMEVALKIT", checkout=True)
    ours = [read_vlmevalkit_main_option(row["answer"], row["choices"]) for row in rows]
    assert ours != [read_vlmevalkit_option(row["answer"], row["choices"]) for row in rows]
    assert ours == letters(said["options"])
    assert [row["vlmevalkit"] for row in YES_NO] == [word.lower() for word in said["yes_no"]]


@pytest.mark.on_request
@pytest.mark.parametrize(
    ("which", "python", "reading"),
    [("vlmevalkit", "PERCEPTIO_VLMEVALKIT", "vlmevalkit"), ("lmms_eval", "PERCEPTIO_LMMS_EVAL", "lmms_eval")],
)
def test_yes_and_no_of_the_releases(which: str, python: str, reading: str) -> None:
    texts = made_up_answers.yes_no(COUNT, seed=0) + [row["answer"] for row in YES_NO]
    said = ask(which, {"options": [], "yes_no": texts}, python=python)
    rule = YES_NO_READINGS[reading]
    assert said["version"] in rule.source
    assert [rule.read(text) for text in texts] == [word.lower() for word in said["yes_no"]]


def choice_records(count: int, *, seed: int, circular: bool) -> list[dict[str, str]]:
    """A table of answers, most of them right; circular with all rotations of each question's options."""
    chance = random.Random(seed)
    records = []
    for number, row in enumerate(made_up_answers.options(count, seed=seed), start=1):
        texts = list(row["choices"].values())
        right = chance.randrange(len(texts))
        for turn in range(len(texts) if circular else 1):
            turned = dict(zip("ABCDE", texts[turn:] + texts[:turn], strict=False))
            answer = "ABCDE"[(right - turn) % len(texts)]
            said = made_up_answers.answer_of(chance, turned, answer if chance.random() < 0.9 else None)
            records.append(
                {"index": str(number + turn * 1_000_000), "question": "Which?", **turned, "answer": answer, "prediction": said}
            )
    return [
        {column: record.get(column, "") for column in ("index", "question", *"ABCDE", "answer", "prediction")}
        for record in records
    ]


@pytest.mark.on_request
@pytest.mark.parametrize("main", [False, True])
def test_scores_of_whole_tables(tmp_path: Path, main: bool) -> None:
    """MMBench's circular score and SEED-Bench's, by VLMEvalKit's evaluation from its files, and by ours from the same."""
    tables = {
        "MMBench_DEV_EN": choice_records(200, seed=3, circular=True),
        "SEEDBench_IMG": choice_records(1000, seed=4, circular=False),
    }
    said = ask("vlmevalkit", {"options": [], "yes_no": [], "tables": tables}, python="PERCEPTIO_VLMEVALKIT", checkout=main)
    for name, benchmark, metric in (("MMBench_DEV_EN", MMBench, "mmbench"), ("SEEDBench_IMG", SeedImage, "seed_image")):
        file = tmp_path / f"{name}.tsv"
        pd.DataFrame(tables[name]).to_csv(file, sep="\t", index=False)
        scores = {score.name: score for score in rescore(benchmark(file, pictures=False), file, bootstrap=BOOTSTRAP)}
        score = scores[f"{metric}/vlmevalkit{'_main' if main else ''}"]
        assert 5 < score.value < 95
        assert score.value == pytest.approx(100 * said["tables"][name]["Overall"])


@pytest.mark.on_request
@pytest.mark.parametrize(("which", "python"), [("vlmevalkit", "PERCEPTIO_VLMEVALKIT"), ("lmms_eval", "PERCEPTIO_LMMS_EVAL")])
def test_scores_of_mme(tmp_path: Path, which: str, python: str) -> None:
    """The sums of perception and cognition, by their evaluation and by ours, all 14 subtasks with 20 pictures each."""
    chance = random.Random(5)
    records = []
    (tmp_path / "questions").mkdir()
    for task in (*PERCEPTION, *COGNITION):
        asked = [(f"{picture}.png", f"Is it {answer}?", answer) for picture in range(20) for answer in ("Yes", "No")]
        (tmp_path / f"questions/{task}.txt").write_text("".join("\t".join(row) + "\n" for row in asked))
        for picture, question, answer in asked:
            said = chance.choice((answer, f"{answer}.", *made_up_answers.yes_no(2, seed=len(records))))
            row = {"index": str(len(records)), "category": task, "image_path": f"{task}/{picture}", "question": question}
            records.append({**row, "answer": answer, "prediction": said})
    pd.DataFrame(records).to_csv(tmp_path / "answers.tsv", sep="\t", index=False)
    scores = rescore(MME(tmp_path, pictures=False), tmp_path / "answers.tsv", bootstrap=BOOTSTRAP)
    ours = {score.name: score.value for score in scores}
    said = ask(which, {"options": [], "yes_no": [], "mme": records}, python=python)["mme"]
    theirs = (
        (said["perception"], said["reasoning"])
        if which == "vlmevalkit"
        else (said["mme_perception_score"], said["mme_cognition_score"])
    )
    assert (ours[f"mme_perception/{which}"], ours[f"mme_cognition/{which}"]) == pytest.approx(theirs)
    assert 200 < theirs[0] < 1800


@pytest.mark.on_request
def test_prompts_of_lmms_eval() -> None:
    """Word for word where ours are said to be its: SEED-Bench, AI2D, ScienceQA."""
    texts = ["one", "two", "a cat", "None"]
    choices = dict(zip("ABCD", texts, strict=True))
    document = {"question": "Which?", "hint": "Look.", "options": texts, "choices": texts}
    document |= {f"choice_{letter.lower()}": text for letter, text in choices.items()}
    asked = {"yes_no": [], "seed": [document], "ai2d": [document], "sqa": [document, {**document, "hint": ""}]}
    said = ask("lmms_eval", asked, python="PERCEPTIO_LMMS_EVAL")
    plain = choice_prompt("Which?", choices)
    assert said["version"] in LMMS_EVAL
    assert said["prompts"] == {
        "seed": [plain],
        "ai2d": [plain],
        "scienceqa": [choice_prompt("Which?", choices, hint="Context: Look."), plain],
    }


def test_vqa_takes_away_no_full_stop_behind_a_number() -> None:
    """Of its 32: 40 numbered items stand before the answer here."""
    assert read_vlmevalkit(" ".join(f"{n}." for n in range(40)) + " yes.") == "yes"
    assert read_vlmevalkit("x. " * 40 + "yes.") == "unknown"
