"""ScienceQA, the questions that have a picture (arXiv 2209.09513): multiple choice, plain accuracy.

Official files: ``problems.json`` {id: {question, choices, answer (number of the choice), hint, image, subject, ...}} and
``pid_splits.json`` {split: [id, ...]}, pictures ``images/<split>/<id>/<image>``. VLMEvalKit's ``ScienceQA_TEST.tsv`` holds
the questions with pictures as a table. The prompt is lmms-eval's: the hint comes first, as "Context: ...".
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceptio_core.data.records import inside, spread
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, read_json, said
from perceptio_core.evaluation.benchmarks.choice import ChoiceQuestion, score_choices
from perceptio_core.evaluation.benchmarks.choice_prompt import choice_prompt
from perceptio_core.evaluation.benchmarks.choice_table import ChoiceRow, read_choice_rows
from perceptio_core.evaluation.benchmarks.official_files import described
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap


class ScienceQA:
    """The questions with a picture of one split.

    Args:
        path: the folder of the official files, or a ``.tsv``.
        split: of the folder: val or test; a table has one split, which its name tells.
        limit: at most this many questions.
        pictures: whether a table's pictures are read; to score answers none is needed.

    Raises:
        ValueError: a file is absent or malformed, the split is not in it, or a question lacks a key.
    """

    def __init__(self, path: Path, *, split: str | None = None, limit: int | None = None, pictures: bool = True) -> None:
        self.rows: list[ChoiceRow] = []
        """The questions with the columns of the table; none where they are read from the folder."""
        if path.suffix == ".tsv":
            if split is not None:
                raise ValueError(f"{path}: a table has one split; split {split!r} is allowed for the folder only")
            self.rows = spread(read_choice_rows(path, pictures=pictures), limit)
            self._questions = [_of_row(row) for row in self.rows]
            self._label = f"ScienceQA-image ({described(path)})"
        else:
            self._questions = spread(_read(path, split or "test"), limit)
            self._label = f"ScienceQA-image, split {split or 'test'}"
        if not self._questions:
            raise ValueError(f"{path}: no question with a picture")

    @property
    def items(self) -> list[Item]:
        """The questions in the order of the split."""
        return [question.item for question in self._questions]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """The metric scienceqa_image, and its parts by subject."""
        return score_choices(self._questions, answers, name="scienceqa_image", label=self._label, bootstrap=bootstrap)


def _prompt(question: str, choices: Mapping[str, str], hint: str) -> str:
    return choice_prompt(question, choices, hint=f"Context: {hint}" if hint else "")


def _of_row(row: ChoiceRow) -> ChoiceQuestion:
    item = replace(row.item, question=_prompt(row.field("question"), row.choices, row.field("hint")))
    return ChoiceQuestion(item=item, choices=row.choices, part=row.field("category"))


def _read(folder: Path, split: str) -> list[ChoiceQuestion]:
    problems, splits = (_read_object(folder / name) for name in ("problems.json", "pid_splits.json"))
    if split not in splits:
        raise ValueError(f"{folder / 'pid_splits.json'}: no split {split!r}; it has {sorted(splits)}")
    if not isinstance(splits[split], list) or not all(isinstance(key, str) for key in splits[split]):
        raise ValueError(f"{folder / 'pid_splits.json'}: {split} must be a list of texts")
    questions = []
    for key in splits[split]:
        where = f"{folder / 'problems.json'}: question {key}"
        problem = problems.get(key)
        if not isinstance(problem, dict) or not {"question", "choices", "answer", "image"} <= problem.keys():
            raise ValueError(f"{where}: expected an object with question, choices, answer and image")
        if problem["image"]:
            questions.append(_question(key, problem, folder / "images" / split / key, where))
    return questions


def _question(key: str, problem: Mapping[str, Any], images: Path, where: str) -> ChoiceQuestion:
    if not isinstance(problem["choices"], list):
        raise ValueError(f"{where}: choices must be a list, got {problem['choices']!r}")
    listed = {f"choice {number}": choice for number, choice in enumerate(problem["choices"])}
    choices = dict(zip(string.ascii_uppercase, (said(listed, key, where) for key in listed), strict=False))
    answer = problem["answer"]
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"{where}: answer {answer!r} is no number of its {len(choices)} choices")
    item = Item(
        item_id=key,
        image=Path(inside(str(images), problem["image"], named_in=Path(where))),
        question=_prompt(
            said(problem, "question", where), choices, said(problem, "hint", where) if problem.get("hint") else ""
        ),
        expected=string.ascii_uppercase[answer],
    )
    return ChoiceQuestion(item=item, choices=choices, part=str(problem.get("subject", "")))


def _read_object(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object")
    return content
