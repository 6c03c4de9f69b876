"""MME (arXiv 2306.13394): yes-or-no questions in pairs, 10 perception and 4 cognition subtasks.

Official files: one ``<task>.txt`` per subtask, a line is ``image TAB question TAB answer [TAB prediction]``, two
consecutive lines ask about one image. Read from ``questions/<task>.txt``, pictures from ``images/<task>/``; or in the layout
of the makers' own download (`perceptio_core.evaluation.benchmarks.mme_release`).

Score of a subtask = 100 * (acc + acc+), acc over its questions, acc+ over its images (both questions right); perception
(at most 2000) and cognition (at most 800) are sums over their subtasks. Public scorers read the same answer differently;
all three readings are computed, the headline is the official one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perceptio_core.data.records import inside, spread
from perceptio_core.evaluation.answers.harness_readings import YES_NO_READINGS
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item, Scores, grouped
from perceptio_core.evaluation.benchmarks.mme_release import read_release, release_folders
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap, Floats
from perceptio_core.metrics import Metric

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PARTS = {"perception": PERCEPTION, "cognition": COGNITION}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The two questions about one image."""

    task: str
    items: tuple[Item, Item]


class MME:
    """The subtasks found below one folder. Pairs whose image is absent are left out, and the protocol says so.

    Args:
        folder: has ``questions/`` and ``images/``, or a folder per subtask as in the makers' download; without pictures, the
            ``<task>.txt`` may lie in it directly, as those of a results folder do.
        limit: at most this many images.
        pictures: whether only pairs whose image is there are kept; to score answers none is needed.

    Raises:
        ValueError: a file name is no subtask, a line is malformed, two consecutive lines differ in their image, or no
            image is there at all.
    """

    def __init__(self, folder: Path, *, limit: int | None = None, pictures: bool = True) -> None:
        read = _read(folder, pictures=pictures)
        self.found = {task: len(pairs) for task, pairs in read.items()}
        pairs = [pair for task in PERCEPTION + COGNITION for pair in read.get(task, [])]
        present = [pair for pair in pairs if not pictures or Path(str(pair.items[0].image)).is_file()]
        if not present:
            raise ValueError(f"{folder}: none of the images that the questions ask about is there")
        self._pairs = spread(present, limit)
        scored = {task: len(pairs) for task, pairs in grouped(self._pairs, lambda pair: pair.task).items()}
        self._scored = scored
        there = Counter(pair.task for pair in present)
        for task, count in self.found.items():
            if there[task] < count:
                _log.warning("MME %s: %d of %d images are there; the others are not asked about", task, there[task], count)

    @property
    def items(self) -> list[Item]:
        """The questions, subtask by subtask, an image's two together."""
        return [item for pair in self._pairs for item in pair.items]

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """mme_perception and mme_cognition; baselines mme_<part>_majority; subtasks and the other readings as parts."""
        headline, breakdown = [], []
        for reading, rule in YES_NO_READINGS.items():
            values = self._values(answers, rule.read)
            for part, tasks in _PARTS.items():
                present = {task: values[task] for task in tasks if task in values}
                if not present:
                    continue
                if reading == "official":
                    headline.append(self._metric(f"mme_{part}", present, part, reading, bootstrap))
                    breakdown += [
                        self._metric(f"mme/{task}", {task: value}, part, reading, bootstrap) for task, value in present.items()
                    ]
                else:
                    breakdown.append(self._metric(f"mme_{part}/{reading}", present, part, reading, bootstrap))
        read_as = {item.item_id: YES_NO_READINGS["official"].read(answers[item.item_id].text) for item in self.items}
        return Scores(
            headline=headline,
            main=headline[0].name,
            baselines=self._majorities(),
            breakdown=breakdown,
            correct={item.item_id: float(read_as[item.item_id] == item.expected) for item in self.items},
            unparsed=sum(label == "other" for label in read_as.values()),
            parsable=len(read_as),
        )

    def _majorities(self) -> list[Metric]:
        """Per part what the more frequent answer of each subtask gets; picked on these questions, so without an interval."""
        found = []
        for part, tasks in _PARTS.items():
            of_task = grouped((pair for pair in self._pairs if pair.task in tasks), lambda pair: pair.task)
            points, said = 0.0, []
            for task, pairs in of_task.items():
                yes = [[item.expected == "yes" for item in pair.items] for pair in pairs]
                word, right = ("yes", yes) if np.mean(yes) >= 0.5 else ("no", [[not one for one in pair] for pair in yes])
                points += 100.0 * float(np.mean(right) + np.mean([all(pair) for pair in right]))
                said.append(f"{task} {word}")
            if of_task:
                protocol = f"MME {part}, always the more frequent answer of the subtask ({', '.join(said)})"
                images = sum(map(len, of_task.values()))
                found.append(Metric(name=f"mme_{part}_majority", value=points, n=images, protocol=protocol))
        return found

    def _values(self, answers: Mapping[str, Answer], read: Callable[[str], str]) -> dict[str, Floats]:
        """Per subtask an array (images, 2): share of the image's questions right, and whether both are."""
        values: dict[str, list[tuple[float, float]]] = {}
        for pair in self._pairs:
            first, second = (read(answers[item.item_id].text) == item.expected for item in pair.items)
            values.setdefault(pair.task, []).append(((first + second) / 2, float(first and second)))
        return {task: np.asarray(rows, dtype=np.float64) for task, rows in values.items()}

    def _metric(self, name: str, values: Mapping[str, Floats], part: str, reading: str, bootstrap: Bootstrap) -> Metric:
        strata = list(values.values())
        low, high = bootstrap.interval(
            strata, lambda means: 100.0 * np.sum([m.sum(axis=1) for m in means], axis=0), top=200.0 * len(values)
        )
        counts = ", ".join(f"{task} {self._scored[task]}/{self.found[task]}" for task in values)
        return Metric(
            name=name,
            value=100.0 * sum(float(rows.mean(axis=0).sum()) for rows in strata),
            low=low,
            high=high,
            n=sum(len(rows) for rows in strata),
            chance=75.0 * len(values),  # half of the questions, a quarter of the pairs
            protocol=(
                f"MME {part}, 100 x (acc + acc+) summed over {len(values)} of {len(_PARTS[part])} subtasks "
                f"(at most {200 * len(values)}); yes and no read by {YES_NO_READINGS[reading].source}; "
                f"images scored: {counts}; per image"
            ),
        )


def task_files(folder: Path) -> list[Path]:
    """The ``<task>.txt`` of a folder.

    Raises:
        ValueError: there is none, or one whose name is no subtask.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise ValueError(f"{folder}: no <task>.txt in it")
    allowed = PERCEPTION + COGNITION
    if strange := [file.name for file in files if file.stem not in allowed]:
        raise ValueError(f"{folder}: {strange} are no MME subtasks; those are {', '.join(allowed)}")
    return files


def read_lines(file: Path) -> list[tuple[int, list[str]]]:
    """(line number, columns) of the lines of a subtask: image, question, answer and, in a results file, prediction.

    Raises:
        ValueError: not UTF-8, or a line has other columns, or an answer that is neither yes nor no; names file and line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows puts a mark before the first line
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error})") from error
    # Not splitlines: a question may hold a separator that only Unicode takes for a line end.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, row in rows:
        if len(row) not in (3, 4) or not row[1].strip() or row[2].strip().lower() not in ("yes", "no"):
            raise ValueError(f"{file}:{number}: expected image TAB question TAB Yes or No [TAB prediction]")
    return rows


def _read(folder: Path, *, pictures: bool) -> dict[str, list[_Pair]]:
    """The pairs of each subtask, in whichever layout they lie."""
    listed = (folder / "questions").is_dir()
    if not listed and (folders := release_folders(folder, tasks=PERCEPTION + COGNITION)):
        return {task: _of_release(task, place) for task, place in folders.items()}
    files = task_files(folder / "questions" if listed or pictures else folder)
    return {file.stem: _read_task(file, folder / "images" / file.stem) for file in files}


def _of_release(task: str, folder: Path) -> list[_Pair]:
    items = [
        Item(item_id=f"{task}/{number}", image=image, question=question, expected=answer.strip().lower())
        for number, (image, question, answer) in enumerate(read_release(folder), start=1)
    ]
    return [_Pair(task=task, items=pair) for pair in zip(items[::2], items[1::2], strict=True)]


def _read_task(file: Path, images: Path) -> list[_Pair]:
    rows = read_lines(file)
    if len(rows) % 2:
        raise ValueError(f"{file}: {len(rows)} lines; two consecutive lines belong to one image")
    pairs = []
    for (number, first), (_, second) in zip(rows[::2], rows[1::2], strict=True):
        if first[0] != second[0]:
            raise ValueError(f"{file}:{number}: two consecutive lines are one image, here {first[0]!r} and {second[0]!r}")
        one, two = (
            Item(
                item_id=f"{file.stem}/{number + offset}",
                image=Path(inside(str(images), row[0], named_in=file)),
                question=row[1],
                expected=row[2].strip().lower(),
            )
            for offset, row in enumerate((first, second))
        )
        pairs.append(_Pair(task=file.stem, items=(one, two)))
    return pairs
