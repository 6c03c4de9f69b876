"""SEED-Bench, its image part, always called SEED-Image (arXiv 2307.16125): multiple choice, plain accuracy.

Official file: ``SEED-Bench.json`` {"questions": [{answer, choice_a .. choice_d, data_id, data_type, question,
question_id, question_type_id, segment}], "question_type": {name: id}}. The question types 1 to 9 ask about an image
(10 to 12 about a video, and are not part of the figure). A picture lies under its ``data_id`` in ``SEED-Bench-image/``
beside the file, with or without an extension. VLMEvalKit's ``SEEDBench_IMG.tsv`` holds the same questions as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceptio_core.data.records import inside, spread
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, read_json, said, unique
from perceptio_core.evaluation.benchmarks.choice import ChoiceQuestion, score_choices
from perceptio_core.evaluation.benchmarks.choice_prompt import choice_prompt
from perceptio_core.evaluation.benchmarks.choice_table import ChoiceRow, read_choice_rows
from perceptio_core.evaluation.benchmarks.official_files import described
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

IMAGE_TYPES = range(1, 10)
IMAGE_FOLDER = "SEED-Bench-image"
KEYS = ("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_id", "data_type", "question", "question_id")


class SeedImage:
    """The image questions of one SEED-Bench.json or SEEDBench_IMG.tsv.

    Args:
        file: ``.json`` or ``.tsv``.
        limit: at most this many questions.
        pictures: whether the table's pictures are read; to score answers none is needed.

    Raises:
        ValueError: the file is not SEED-Bench's first version, or a question lacks a key or has an unknown answer.
    """

    def __init__(self, file: Path, *, limit: int | None = None, pictures: bool = True) -> None:
        self.rows: list[ChoiceRow] = []
        """The questions with the columns of the table; none where they are read from the JSON file."""
        if file.suffix == ".tsv":
            self.rows = spread(read_choice_rows(file, pictures=pictures), limit)
            self._questions = [
                ChoiceQuestion(item=row.item, choices=row.choices, part=row.field("category")) for row in self.rows
            ]
            self._label = f"SEED-Image ({described(file)})"
        else:
            self._questions = spread(_read(file), limit)
            self._label = "SEED-Image (SEED-Bench, question types 1-9)"

    @property
    def items(self) -> list[Item]:
        """The image questions in the order of the file."""
        return [question.item for question in self._questions]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """seed_image, and its parts by question type."""
        return score_choices(self._questions, answers, name="seed_image", label=self._label, bootstrap=bootstrap)


def _read(file: Path) -> list[ChoiceQuestion]:
    content = read_json(file)
    listed, named = (content.get(key) for key in ("questions", "question_type")) if isinstance(content, dict) else (None, None)
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed) or not isinstance(named, dict):
        raise ValueError(f"{file}: expected an object with questions, a list of objects, and question_type, an object")
    kinds = {str(number): name for name, number in named.items()}
    for number, row in enumerate(listed):
        if type(row.get("question_type_id")) is not int:  # or it would pass for a question about a video
            kind = row.get("question_type_id")
            raise ValueError(f"{file}: row {number}: question_type_id must be a whole number, got {kind!r:.80}")
    rows = [row for row in listed if row["question_type_id"] in IMAGE_TYPES]
    if not rows:
        raise ValueError(f"{file}: no question has a question_type_id from 1 to 9")
    unique((said(row, "question_id", f"{file}: a question") for row in rows), what="question_id", named_in=file)
    pictures = _Pictures(file.parent / IMAGE_FOLDER)
    return [_question(row, kinds, file, pictures) for row in rows]


def _question(row: Mapping[str, Any], kinds: Mapping[str, str], file: Path, pictures: _Pictures) -> ChoiceQuestion:
    where = f"{file}: question {row['question_id']}"
    if missing := [key for key in KEYS if key not in row]:
        raise ValueError(f"{where}: {missing} missing")
    if row["data_type"] != "image":
        raise ValueError(f"{where}: data_type {row['data_type']!r}; SEED-Bench's types 1-9 have 'image'")
    if row["answer"] not in ("A", "B", "C", "D"):
        raise ValueError(f"{where}: answer {row['answer']!r} is none of A, B, C, D")
    choices = {letter: said(row, f"choice_{letter.lower()}", where) for letter in "ABCD"}
    item = Item(
        item_id=str(row["question_id"]),
        image=pictures.find(said(row, "data_id", where), named_in=file),
        question=choice_prompt(said(row, "question", where), choices),
        expected=row["answer"],
    )
    number = str(row["question_type_id"])
    return ChoiceQuestion(item=item, choices=choices, part=kinds.get(number, number))


class _Pictures:
    """The folder of the pictures, which have their names with or without a suffix."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
        self._by_stem = {file.stem: file for file in files} | {file.name: file for file in files}

    def find(self, data_id: str, *, named_in: Path) -> Path:
        """The picture of a data_id; the bare name where there is none, which the runner then reports as missing."""
        bare = Path(inside(str(self._folder), data_id, named_in=named_in))
        return self._by_stem.get(data_id, bare)
