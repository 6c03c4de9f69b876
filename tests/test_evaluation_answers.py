"""Golden tables of the answer parsers."""

import pytest

from perceptio_core.evaluation.answers.harness_readings import (
    read_lmms_eval,
    read_mme_tool,
    read_vlmevalkit,
    read_vlmevalkit_option,
)
from perceptio_core.evaluation.answers.options import mentioned_letters, parse_option
from perceptio_core.evaluation.benchmarks.choice_prompt import choice_prompt
from perceptio_core.grammar import strip_perception

LETTER_ANSWERS = [
    # the letter alone
    ("B", "B"),
    ("(B)", "B"),
    ("b", "B"),
    ("(b).", "B"),
    ("**B**", "B"),
    ("`C`", "C"),
    (" B.\n", "B"),
    ("[D]", "D"),
    # letters that are no option
    ("F", None),
    ("(E)", None),
    # list marks
    ("B. the red box", "B"),
    ("(B) the red box", "B"),
    ("C: Solution A", "C"),
    ("A: 120, B: 30, C: 66.", None),
    # verdicts
    ("The answer is B.", "B"),
    ("Answer: (C)", "C"),
    ("The correct answer would be option D", "D"),
    ("Point B is the closest to the camera.", "B"),
    ("B is closest.", "B"),
    ("The closest point to the camera is C, not A.", "C"),
    ("The nearest point is (A)", "A"),
    ("A is not the closest; B is the closest.", "B"),
    ("First I thought the answer is A. On reflection the answer is B.", "B"),
    ("A: 120, B: 30, C: 66. The closest to the camera is point A.", "A"),
    ("The depth at A is 31 and at B is 90. Therefore, B.", "B"),
    ("the answer is A or B", None),
    ("The answer is (A)/(B)", None),
    # one letter named
    ("I think it must be D, because it looks large", "D"),
    ("It is point (C)", "C"),
    # several named, none settled on
    ("A and B are both close", None),
    ("(A) (B)", None),
    # the article is no option
    ("A red box", None),
    ("A cat and B", "B"),
    ("A's box", None),
    # nothing
    ("", None),
    ("I cannot tell.", None),
    ("Bad", None),
]


@pytest.mark.parametrize(("text", "expected"), LETTER_ANSWERS)
def test_letter(text: str, expected: str | None) -> None:
    assert parse_option(text, letters="ABCD") == expected


CHOICES = {"A": "Solution B", "B": "Solution A", "C": "red", "D": "a dark red box"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Solution A", "B"),
        ("solution a.", "B"),
        ("It is Solution A.", "B"),
        ("A. Solution B", "A"),
        ("A", "A"),
        ("red", "C"),
        ("It is red", "C"),
        ("a dark red box", "D"),
        ("the box is reddish", None),
        ("C, because the thing is red", "C"),
        ("Solution A or Solution B", None),
    ],
)
def test_text_of_an_option(text: str, expected: str | None) -> None:
    assert parse_option(text, letters="ABCD", choices=CHOICES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(A) or (B)", {"A", "B"}),
        ("Point C", {"C"}),
        ("(c)", {"C"}),
        ("A box", set()),
        ("A is nearer than B", {"A", "B"}),
        ("Ab B1", set()),
    ],
)
def test_mentioned_letters(text: str, expected: set[str]) -> None:
    assert mentioned_letters(text, letters="ABC") == expected


VLMEVALKIT_OPTIONS = [
    # (answer, VLMEvalKit's exact matching, ours)
    ("B", "B", "B"),
    ("(B)", "B", "B"),
    ("b", None, "B"),
    ("[B].", "B", "B"),
    ("Answer: B", "B", "B"),
    ("**C**", "C", "C"),
    ("B. Solution A", "B", "B"),  # two letters among the words; the text of B is in it, and that of no other
    ("Solution A", "A", "B"),  # the letter A is among the words
    ("It is red", "C", "C"),
    ("The box is reddish", "C", None),  # a text contained in a word
    ("It must be C since the thing that I see there is tall", None, "C"),  # C is not among the last five words
    ("I'm sorry, but without the image provided I say B", None, "B"),
    ("Z", None, None),
    ("B or C", None, None),
    ("", None, None),
    ("A dark thing", "A", None),  # the article
]


@pytest.mark.parametrize(("text", "theirs", "ours"), VLMEVALKIT_OPTIONS)
def test_two_readings_of_an_option(text: str, theirs: str | None, ours: str | None) -> None:
    assert read_vlmevalkit_option(text, CHOICES) == theirs
    assert parse_option(text, letters="ABCD", choices=CHOICES) == ours


YES_NO = [
    # the table of the project's facts: (output, official, lmms-eval, VLMEvalKit)
    ("Not visible", "no", "no", "unknown"),
    ("Nothing", "no", "no", "unknown"),
    ("The answer is no", "other", "other", "no"),
    ("Yes and no", "yes", "yes", "unknown"),
    ("y", "other", "yes", "unknown"),
    ("<depth_start><depth_3><depth_end> yes", "other", "other", "yes"),
    ("**Yes**", "other", "other", "unknown"),
    # ours
    ("Yes", "yes", "yes", "yes"),
    ("no.", "no", "no", "no"),
    ("n", "other", "no", "unknown"),
    ("N.", "other", "no", "unknown"),
    ("Yes, it is", "yes", "yes", "yes"),
    (" yes", "yes", "yes", "yes"),
    ("     yes", "other", "yes", "yes"),
    ("...yes", "other", "yes", "yes"),
    ("no,there is none", "no", "no", "no"),
    ("yes!no", "yes", "yes", "unknown"),
    ("It costs 1,000, no", "other", "other", "no"),
    ("I know", "other", "other", "unknown"),
    ("know", "no", "no", "unknown"),
    ("", "other", "other", "unknown"),
]


@pytest.mark.parametrize(("text", "official", "lmms_eval", "vlmevalkit"), YES_NO)
def test_three_readings_of_yes_and_no(text: str, official: str, lmms_eval: str, vlmevalkit: str) -> None:
    assert (read_mme_tool(text), read_lmms_eval(text), read_vlmevalkit(text)) == (official, lmms_eval, vlmevalkit)


def test_stripping_perception_repairs_the_official_reading() -> None:
    raw = "[SEG]<depth_start><depth_3><depth_0><depth_end> Yes"
    assert read_mme_tool(raw) == "other"
    assert read_mme_tool(strip_perception(raw)) == "yes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer" + " " * 50_000 + "is\n\n: B", "B"),
        ("answer" + " " * 50_000, None),
        ("closest " * 20_000, None),
        ("The closest, " + "x" * 250 + ", is B", "B"),  # too far for a verdict, but one letter is named
        ("A " * 50_000, "A"),
        ("a" * 200_000, None),
    ],
)
def test_long_answers_are_read_in_linear_time(text: str, expected: str | None) -> None:
    assert parse_option(text, letters="ABCD") == expected


def test_choice_prompt() -> None:
    assert choice_prompt("What is it?", {"A": "a cat", "B": "a dog"}, hint="Look.") == (
        "Look.\nWhat is it?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly."
    )
