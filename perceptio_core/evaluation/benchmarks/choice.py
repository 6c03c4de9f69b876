"""Plain multiple choice: accuracy over questions, and over parts of them. SEED-Image, AI2D, ScienceQA and BLINK share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perceptio_core.evaluation.answers.harness_readings import OPTION_READINGS
from perceptio_core.evaluation.answers.options import RULE, parse_option
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, accuracy, grouped, most_frequent
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestion:
    """A question with lettered options.

    Attributes:
        item: `expected` is the letter.
        choices: text of the options by letter.
        part: what the breakdown groups by; empty for none.
    """

    item: Item
    choices: Mapping[str, str]
    part: str = ""


def score_choices(
    questions: Sequence[ChoiceQuestion], answers: Mapping[str, Answer], *, name: str, label: str, bootstrap: Bootstrap
) -> Scores:
    """Metric `name`; ``<name>/<reading>``, the same answers as others read them; ``<name>/<part>`` for the parts.

    Chance is one of a question's options, on average. Baselines: ``<name>_majority`` and ``<name>_longest``, which look at no
    picture.

    Args:
        questions: at least one.
        answers: by `Item.item_id`.
        name: of the metric.
        label: benchmark and split, as the protocol states them.
        bootstrap: how intervals are computed.
    """
    parsed = [
        parse_option(answers[question.item.item_id].text, letters="".join(question.choices), choices=question.choices)
        for question in questions
    ]
    hits = [letter == question.item.expected for letter, question in zip(parsed, questions, strict=True)]
    unparsed = sum(letter is None for letter in parsed)
    rule = f"{label}: accuracy, {RULE}"
    unit = "per question"
    guessed = [100.0 / len(question.choices) for question in questions]
    chance = float(np.mean(guessed))
    parts = grouped(range(len(hits)), lambda index: questions[index].part)
    return Scores(
        headline=[
            accuracy(
                hits,
                name=name,
                protocol=f"{rule}, {unparsed} of {len(hits)} unparsed count as wrong",
                bootstrap=bootstrap,
                unit=unit,
                chance=chance,
            )
        ],
        main=name,
        baselines=[_majority(questions, name, label), _longest(questions, name, label, bootstrap)],
        breakdown=[
            *(
                accuracy(
                    [
                        reading.read(answers[question.item.item_id].text, question.choices) == question.item.expected
                        for question in questions
                    ],
                    name=f"{name}/{named}",
                    protocol=f"{label}: accuracy, option by the exact matching of {reading.source}",
                    bootstrap=bootstrap,
                    unit=unit,
                    chance=chance,
                )
                for named, reading in OPTION_READINGS.items()
            ),
            *(
                accuracy(
                    [hits[index] for index in members],
                    name=f"{name}/{part}",
                    protocol=f"{rule}, unparsed count as wrong",
                    bootstrap=bootstrap,
                    unit=unit,
                    chance=float(np.mean([guessed[index] for index in members])),
                )
                for part, members in parts.items()
                if part
            ),
        ],
        correct={question.item.item_id: float(hit) for question, hit in zip(questions, hits, strict=True)},
        unparsed=unparsed,
        parsable=len(hits),
    )


def longest_option(choices: Mapping[str, str]) -> str:
    """The letter of the option with the most characters; of several the first."""
    return max(choices, key=lambda letter: (len(choices[letter]), -ord(letter)))


def _majority(questions: Sequence[ChoiceQuestion], name: str, label: str) -> Metric:
    """The letter is picked on the very questions that it is scored on: an interval would mean nothing."""
    letter = most_frequent(question.item.expected for question in questions)
    share = 100.0 * float(np.mean([question.item.expected == letter for question in questions]))
    return Metric(name=f"{name}_majority", value=share, n=len(questions), protocol=f"{label}: always {letter}")


def _longest(questions: Sequence[ChoiceQuestion], name: str, label: str, bootstrap: Bootstrap) -> Metric:
    hits = [longest_option(question.choices) == question.item.expected for question in questions]
    protocol = f"{label}: always the longest option, of several the first"
    return accuracy(hits, name=f"{name}_longest", protocol=protocol, bootstrap=bootstrap, unit="per question")
