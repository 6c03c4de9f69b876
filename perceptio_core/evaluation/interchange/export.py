"""Answers as the files that the benchmarks' own tools take: what `predictions` reads, written.

| Benchmark | File |
|---|---|
| MME | folder of ``<task>.txt``, for MME's evaluation tool; or ``.xlsx``, ``.tsv`` for VLMEvalKit |
| a table (MMBench, SEED, AI2D, ScienceQA) | ``.xlsx``, ``.tsv``: its columns and prediction; MMBench's server, VLMEvalKit |
| SEED, ScienceQA from their own files | ``.jsonl`` of question_id and prediction, for SEED-Bench's leaderboard |
| HardBLINK | folder of ``blink_{n}pointscenter_answers.jsonl``, for AURORA's scorer |
| BLINK | ``.json`` of {idx: "(A)"}, "(Z)" where no option could be read; for BLINK's ``evaluate.py`` |
| segmentation | ``.jsonl`` of ref_id and sent_id (ReasonSeg: image) and a list of COCO run lengths |

The text is written without perception spans: those tools read the first characters of an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from perceptio_core.evaluation.answers.options import parse_option
from perceptio_core.evaluation.benchmarks.ai2d import AI2D
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark, Item, grouped
from perceptio_core.evaluation.benchmarks.blink import BlinkDepth
from perceptio_core.evaluation.benchmarks.choice import ChoiceQuestion
from perceptio_core.evaluation.benchmarks.choice_table import ChoiceRow
from perceptio_core.evaluation.benchmarks.hardblink import HardBlink
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.mme import MME
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg
from perceptio_core.evaluation.benchmarks.scienceqa import ScienceQA
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.jsonl import write_jsonl

Answers = Mapping[str, Answer]


def export(benchmark: Benchmark, answers: Answers, out: Path) -> None:
    """Write the answers to `out`, a new file or folder.

    Args:
        benchmark: whose answers they are.
        answers: one per question, by `Item.item_id`.
        out: its suffix must be one of those in the table above; none for a folder.

    Raises:
        ValueError: `out` exists, or has another suffix; says which are allowed.
    """
    if out.exists():
        raise ValueError(f"{out}: exists already; name a new file or folder")
    suffixes, write = _writer(benchmark)
    if out.suffix not in suffixes:
        allowed = " or ".join(suffix or "a folder (no suffix)" for suffix in suffixes)
        raise ValueError(f"{out}: answers to this benchmark are written as {allowed}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write(answers, out)


def _writer(benchmark: Benchmark) -> tuple[tuple[str, ...], Callable[[Answers, Path], None]]:
    items = benchmark.items
    if isinstance(benchmark, MMBench | AI2D | SeedImage | ScienceQA) and benchmark.rows:
        rows = benchmark.rows
        return (".xlsx", ".tsv"), lambda answers, out: _table(rows, answers, out)
    if isinstance(benchmark, MME):
        return ("", ".xlsx", ".tsv"), lambda answers, out: _mme(items, answers, out)
    if isinstance(benchmark, HardBlink):
        return ("",), lambda answers, out: _hardblink(items, answers, out)
    if isinstance(benchmark, BlinkDepth):
        questions = benchmark.questions
        return (".json",), lambda answers, out: _blink(questions, answers, out)
    if isinstance(benchmark, ReasonSeg):
        return (".jsonl",), lambda answers, out: _masks(items, answers, out, _picture)
    if items[0].truth is not None:
        return (".jsonl",), lambda answers, out: _masks(items, answers, out, _sentence)
    return (".jsonl",), lambda answers, out: write_jsonl(
        out, ({"question_id": item.item_id, "prediction": answers[item.item_id].text} for item in items)
    )


def _table(rows: Sequence[ChoiceRow], answers: Answers, out: Path) -> None:
    _write_table([{**row.fields, "prediction": answers[row.item.item_id].text} for row in rows], out)


def _write_table(records: Sequence[Mapping[str, str]], out: Path) -> None:
    columns = list(records[0])
    if out.suffix == ".tsv":
        pd.DataFrame(records, columns=columns).to_csv(out, sep="\t", index=False)
        return
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(columns)
    for record in records:
        sheet.append([_cell(sheet, column, record[column]) for column in columns])
    book.save(out)


def _cell(sheet: Any, column: str, text: str) -> Any:
    if column == "index":
        return int(text)
    cell = WriteOnlyCell(sheet, value=ILLEGAL_CHARACTERS_RE.sub("", text))
    cell.data_type = "s"  # an answer that begins with = is no formula
    return cell


def _mme(items: Sequence[Item], answers: Answers, out: Path) -> None:
    if out.suffix:
        _write_table([_mme_record(number, item, answers[item.item_id]) for number, item in enumerate(items)], out)
        return
    out.mkdir()
    for task, members in grouped(items, lambda item: item.item_id.partition("/")[0]).items():
        lines = []
        for item in members:
            # A tab or a line end would be another column or line; other blanks count in the official reading.
            said = re.sub(r"[\t\r\n]+", " ", answers[item.item_id].text)
            lines.append("\t".join([Path(str(item.image)).name, item.question, item.expected.capitalize(), said]))
        (out / f"{task}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _mme_record(number: int, item: Item, answer: Answer) -> dict[str, str]:
    """A row of VLMEvalKit's MME table; its scorer pairs the two questions by category and image_path."""
    task = item.item_id.partition("/")[0]
    return {
        "index": str(number),
        "category": task,
        "image_path": f"{task}/{Path(str(item.image)).name}",
        "question": item.question,
        "answer": item.expected.capitalize(),
        "prediction": answer.text,
    }


def _hardblink(items: Sequence[Item], answers: Answers, out: Path) -> None:
    out.mkdir()
    for n, members in grouped(items, lambda item: item.item_id.partition("/")[0]).items():
        rows = [
            {"question_id": _number(item.item_id.partition("/")[2]), "text": answers[item.item_id].text} for item in members
        ]
        write_jsonl(out / f"blink_{n}pointscenter_answers.jsonl", rows)


def _number(key: str) -> int | str:
    return int(key) if key.isdecimal() else key


def _blink(questions: Sequence[ChoiceQuestion], answers: Answers, out: Path) -> None:
    said = {}
    for question in questions:
        text = answers[question.item.item_id].text
        letter = parse_option(text, letters="".join(question.choices), choices=question.choices)
        said[question.item.item_id] = f"({letter or 'Z'})"
    out.write_text(json.dumps(said, indent=4) + "\n", encoding="utf-8")


def _sentence(item: Item) -> dict[str, Any]:
    reference, _, sentence = item.item_id.partition("/")
    return {"ref_id": _number(reference), "sent_id": _number(sentence)}


def _picture(item: Item) -> dict[str, Any]:
    return {"image": Path(str(item.image)).name}


def _masks(items: Sequence[Item], answers: Answers, out: Path, named: Callable[[Item], dict[str, Any]]) -> None:
    write_jsonl(out, ({**named(item), "segmentation": [dict(mask) for mask in answers[item.item_id].masks]} for item in items))
