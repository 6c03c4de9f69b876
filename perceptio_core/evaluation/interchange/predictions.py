"""Reading somebody's answers, so that they can be scored without the model: our predictions files, official result files.

| Form | Benchmarks | Holds |
|---|---|---|
| ``.jsonl`` of `evaluate` | all | item_id, raw, text, masks, ... |
| ``.jsonl`` | SEED, ScienceQA, AI2D, MMBench | question_id (or q_id) and prediction (or text) |
| ``.jsonl`` | segmentation | sent_id (and ref_id), or image for ReasonSeg; segmentation: COCO RLE, a list of them, or null |
| folder of ``<task>.txt`` | MME | image TAB question TAB answer TAB prediction |
| folder of ``*{n}pointscenter*.jsonl``, or one of them for one subset | HardBLINK | question_id and text |
| ``.tsv``, ``.xlsx`` | MMBench, SEED, AI2D, ScienceQA | columns index and prediction |
| ``.tsv``, ``.xlsx`` | MME | VLMEvalKit's columns category, image_path, question and prediction |
| ``.json`` | BLINK | {idx: prediction}, or {"val": [{idx, prediction}]} |

Perception spans are taken out of every text before it is read; the raw text is kept. Every question must have one prediction:
a part of a benchmark is another benchmark. Predictions that belong to no question are left aside, with a word in the log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark, Item
from perceptio_core.evaluation.benchmarks.choice_table import read_table
from perceptio_core.evaluation.benchmarks.hardblink import SUBSETS, HardBlink
from perceptio_core.evaluation.benchmarks.masks import checked
from perceptio_core.evaluation.benchmarks.mme import MME, read_lines, task_files
from perceptio_core.grammar import strip_perception
from perceptio_core.jsonl import read_jsonl

FORMS = ".jsonl, .tsv, .xlsx, .json, or a folder (MME, HardBLINK)"
QUESTION_IDS = ("question_id", "q_id", "idx")
"""How official files name a question: most of them; SEED-Bench's ``eval.py``; BLINK."""
_ABSENT = object()
_SHOWN = 3  # of the questions without a prediction
_log = logging.getLogger(__name__)


def read_predictions(path: Path, benchmark: Benchmark) -> dict[str, Answer]:
    """One answer per question of the benchmark, by `Item.item_id`.

    Raises:
        ValueError: the file is absent, malformed or of no known form, predicts a question twice, or lacks one.
    """
    items = {item.item_id: item for item in benchmark.items}
    answers: dict[str, Answer] = {}
    strangers = 0
    for key, answer in _read(path, benchmark, items):
        if key not in items:
            strangers += 1
            continue
        if key in answers:
            raise ValueError(f"{path}: question {key} is predicted twice")
        answers[key] = answer
    if strangers:
        _log.warning("%s: %d predictions belong to none of the questions; left aside", path, strangers)
    if missing := [key for key in items if key not in answers]:
        shown = ", ".join(missing[:_SHOWN])
        raise ValueError(f"{path}: {len(missing)} of {len(items)} questions have no prediction, such as {shown}")
    return answers


def _read(path: Path, benchmark: Benchmark, items: Mapping[str, Item]) -> Iterator[tuple[str, Answer]]:
    if path.is_dir():
        if isinstance(benchmark, MME):
            yield from _mme_folder(path, benchmark)
        elif isinstance(benchmark, HardBlink):
            yield from _hardblink_folder(path, items)
        else:
            raise ValueError(f"{path}: a folder of predictions is read for MME and HardBLINK only")
    elif path.suffix in (".tsv", ".xlsx"):
        mme = _MmeKeys(benchmark) if isinstance(benchmark, MME) else None
        needed = ["prediction"] if mme is None else ["category", "image_path", "question", "prediction"]
        for record in read_table(path):
            if missing := [column for column in needed if column not in record]:
                raise ValueError(f"{path}: there is no column {', '.join(missing)}; there are {list(record)}")
            key = record["index"] if mme is None else mme.key(record["category"], record["image_path"], record["question"])
            yield key, _answer(key, record["prediction"], f"{path}: index {record['index']}")
    elif path.suffix == ".json":
        yield from _json(path)
    elif path.suffix == ".jsonl":
        yield from _jsonl(path, items, subset=_only_subset(benchmark))
    else:
        raise ValueError(f"{path}: predictions are read from {FORMS}")


def _answer(key: str, text: Any, where: str) -> Answer:
    if not isinstance(text, str | None):
        raise ValueError(f"{where}: an answer must be a text, got {text!r}"[:300])
    raw = text or ""
    return Answer(item_id=key, raw=raw, text=strip_perception(raw))


def _only_subset(benchmark: Benchmark) -> str | None:
    """The subset of a HardBLINK that has one; its official files number the questions of each subset by themselves."""
    subsets = {item.item_id.partition("/")[0] for item in benchmark.items} if isinstance(benchmark, HardBlink) else set()
    return subsets.pop() if len(subsets) == 1 else None


def _jsonl(path: Path, items: Mapping[str, Item], *, subset: str | None) -> Iterator[tuple[str, Answer]]:
    sentences = _by_sentence(items)
    for number, row in enumerate(read_jsonl(path, keys=()), start=1):
        where = f"{path}: row {number}"
        key = _key(row, sentences, where)
        if subset is not None and "item_id" not in row and "question_id" in row:
            key = f"{subset}/{key}"
        yield key, _row_answer(key, row, items[key], where) if key in items else _answer(key, "", where)


def _row_answer(key: str, row: Mapping[str, Any], item: Item, where: str) -> Answer:
    """What a row says to the item: masks where masks are asked for, else text; our own rows hold both, and the raw text."""
    if item.truth is not None:
        given = next((row[name] for name in ("masks", "segmentation") if name in row), _ABSENT)
        if given is _ABSENT:
            raise ValueError(f"{where}: expected segmentation (null for no mask), found the keys {sorted(row)}")
        masks = _masks(given, item.truth["size"], f"{where} ({item.item_id})")
        return replace(_answer(key, row.get("raw", row.get("text")), where), masks=masks)
    text = next((row[name] for name in ("text", "prediction", "raw") if name in row), _ABSENT)
    if text is _ABSENT:
        raise ValueError(f"{where}: expected prediction or text, found the keys {sorted(row)}")
    return replace(_answer(key, text, where), raw=_answer(key, row.get("raw", text), where).raw)


def _by_sentence(items: Mapping[str, Item]) -> dict[str, str]:
    """The item of a sentence id, for segmentation by expressions; none for an id that several items have."""
    named: dict[str, list[str]] = {}
    for key, item in items.items():
        if item.truth is not None:
            named.setdefault(key.rpartition("/")[2], []).append(key)
    return {sentence: keys[0] for sentence, keys in named.items() if len(keys) == 1}


def _key(row: Mapping[str, Any], sentences: Mapping[str, str], where: str) -> str:
    for name in ("item_id", *QUESTION_IDS):
        if name in row:
            return str(row[name])
    if "sent_id" in row:
        sentence = str(row["sent_id"])
        return f"{row['ref_id']}/{sentence}" if "ref_id" in row else sentences.get(sentence, sentence)
    if "image" in row:
        return Path(str(row["image"])).stem
    raise ValueError(f"{where}: expected item_id, {', '.join(QUESTION_IDS)}, sent_id or image, found the keys {sorted(row)}")


def _masks(given: Any, size: Sequence[int], where: str) -> tuple[dict[str, Any], ...]:
    masks = [] if given is None else given if isinstance(given, list) else [given]
    return tuple(checked(mask, size=size, where=where) for mask in masks)


def _json(path: Path) -> Iterator[tuple[str, Answer]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    rows = content.get("val") if isinstance(content, dict) else None
    if isinstance(rows, list):
        if not all(isinstance(row, dict) and {"idx", "prediction"} <= row.keys() for row in rows):
            raise ValueError(f'{path}: "val" holds objects with idx and prediction')
        content = {}
        for row in rows:
            if str(row["idx"]) in content:
                raise ValueError(f"{path}: question {row['idx']} is predicted twice")
            content[str(row["idx"])] = row["prediction"]
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise ValueError(f'{path}: expected an object {{idx: prediction}}, or {{"val": [{{idx, prediction}}]}}')
    yield from ((key, _answer(key, text, f"{path}: {key}")) for key, text in content.items())


class _MmeKeys:
    """MME's questions by subtask, picture and wording, so that the order of the lines does not matter."""

    def __init__(self, benchmark: MME) -> None:
        self._keys: dict[tuple[str, str, str], list[str]] = {}
        for item in benchmark.items:
            task = item.item_id.partition("/")[0]
            self._keys.setdefault((task, Path(str(item.image)).name, item.question), []).append(item.item_id)

    def key(self, task: str, image: str, question: str) -> str:
        """The item; a name that no item has for a question that is not in the benchmark."""
        waiting = self._keys.get((task, Path(image).name, question), [f"{task}/{image}/{question}"])
        # The same question about the same picture may stand in a subtask more than once.
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


def _mme_folder(folder: Path, benchmark: MME) -> Iterator[tuple[str, Answer]]:
    keys = _MmeKeys(benchmark)
    for file in task_files(folder):
        for number, row in read_lines(file):
            if len(row) != 4:
                raise ValueError(f"{file}:{number}: no prediction; expected image TAB question TAB answer TAB prediction")
            key = keys.key(file.stem, row[0], row[1])
            yield key, _answer(key, row[3], f"{file}:{number}")


def _hardblink_folder(folder: Path, items: Mapping[str, Item]) -> Iterator[tuple[str, Answer]]:
    for n in SUBSETS:
        if not any(key.startswith(f"{n}/") for key in items):
            continue
        found = sorted(folder.glob(f"*{n}pointscenter*.jsonl"))
        if len(found) != 1:
            names = [file.name for file in found]
            raise ValueError(f"{folder}: expected one *{n}pointscenter*.jsonl, found {names}")
        for row in read_jsonl(found[0], keys=("question_id",)):
            if "text" not in row and "prediction" not in row:
                raise ValueError(f"{found[0]}: question {row['question_id']}: expected text or prediction")
            key = f"{n}/{row['question_id']}"
            yield (
                key,
                _answer(key, row["text"] if "text" in row else row["prediction"], f"{found[0]}: question {row['question_id']}"),
            )
