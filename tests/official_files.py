"""The benchmarks in their official layouts, as a handful of rows; the smallest of each kind."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.evaluation.benchmarks.ai2d import AI2D
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark, Metric
from perceptio_core.evaluation.benchmarks.blink import BlinkDepth
from perceptio_core.evaluation.benchmarks.grefcoco import GeneralisedReferring
from perceptio_core.evaluation.benchmarks.hardblink import HardBlink
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.mme import MME
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.evaluation.benchmarks.scienceqa import ScienceQA
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage

BLINK_PROMPT = "Which point is closer to the camera?\nSelect from the following choices.\n(A) A is closer\n(B) B is closer"


def table_rows(**more: str) -> list[dict[str, str]]:
    picture = png()
    base = {"question": "Which?", "A": "leaf", "B": "root", "C": "", "D": "", **more}
    return [
        {"index": "0", **base, "answer": "A", "category": "plants", "image": picture},
        {"index": "1", **base, "answer": "B", "category": "plants", "image": "0"},
        {"index": "2", **base, "C": "stem", "answer": "C", "category": "cells", "image": picture},
    ]


def write_blink(path: Path, **changes: Any) -> Path:
    rows = [
        {
            "idx": f"val_Relative_Depth_{i + 1}",
            "sub_task": "Relative_Depth",
            "question": "Which point is closer to the camera?",
            "image_1": {"bytes": base64.b64decode(png()), "path": None},
            "image_2": None,
            "choices": ["A is closer", "B is closer"],
            "answer": answer,
            "prompt": BLINK_PROMPT,
            **changes,
        }
        for i, answer in enumerate(["(A)", "(B)", "(B)"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_scienceqa(folder: Path, **changes: Any) -> Path:
    problem = {"question": "Which?", "choices": ["leaf", "root", "stem"], "answer": 2, "hint": "", "image": "image.png"}
    problems = {
        "7": {**problem, "subject": "natural science"},
        "8": {**problem, "subject": "language science", "image": None},
        "9": {**problem, "subject": "social science", "hint": "Look at the map.", "answer": 0, **changes},
        "10": {**problem, "choices": list("vwxyz"), "answer": 4, "subject": "natural science"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["7", "8", "9", "10"], "val": []}))
    return folder


def answers(texts: Mapping[str, str]) -> dict[str, Answer]:
    return {key: Answer(item_id=key, raw=text, text=text) for key, text in texts.items()}


def by_name(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


HARDBLINK_TRUTHS = {3: "AABA", 4: "DDDC", 5: "EABC"}


def write_hardblink(folder: Path, *, markers: bool) -> Path:
    rows = []
    for n, letters in HARDBLINK_TRUTHS.items():
        questions = [{"question_id": i, "image": f"{i}.png", "text": "Which?"} for i in range(4)]
        write_jsonl(folder / f"questions/blink_{n}pointscenter_questions.jsonl", questions)
        truths = [{"question_id": i, "text": f"({letter})"} for i, letter in enumerate(letters)]
        write_jsonl(folder / f"answers/blink_{n}pointscenter_answers.jsonl", truths)
        for i in range(4):
            # The lowest marker is always the last letter, the biggest object's always B, the brightest always A.
            points = [
                {"letter": letter, "x": 0, "y": k, "area": 9 if letter == "B" else 1, "brightness": -k}
                for k, letter in enumerate("ABCDE"[:n])
            ]
            rows.append({"question_id": i, "subset": n, "points": points})
    if markers:
        write_jsonl(folder / "markers.jsonl", rows)
    return folder


def png(color: int = 0) -> str:
    # Noise, so that the base64 text is longer than a pointer may be.
    pixels = np.random.default_rng(color).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


MMBENCH_COLUMNS = [
    "index",
    "question",
    "hint",
    *"ABCD",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
]


def write_mmbench(path: Path, rows: list[dict[str, str]]) -> Path:
    return write_tsv(path, [{column: row.get(column, "") for column in MMBENCH_COLUMNS} for row in rows])


def write_tsv(path: Path, rows: list[dict[str, str]]) -> Path:
    def field(value: str) -> str:
        return '"' + value.replace('"', '""') + '"' if any(c in value for c in '\t\n"') else value

    lines = ["\t".join(field(value) for value in row.values()) for row in rows]
    path.write_text("\t".join(rows[0]) + "\n" + "\n".join(lines) + "\n")
    return path


def rotations(index: int, options: list[str], right: str, image: str, **more: str) -> list[dict[str, str]]:
    rows = []
    for turn in range(len(options)):
        turned = options[turn:] + options[:turn]
        rows.append(
            {
                "index": str(index + turn * 1_000_000),
                "question": 'Say "it"\nin two lines',
                "answer": "ABCD"[turned.index(right)],
                "image": image if turn == 0 or len(image) <= 64 else str(index),
                **dict(zip("ABCD", turned, strict=False)),
                **more,
            }
        )
    return rows


def write_seed(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    base = {"choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four", "question": "How many?"}
    kinds = [5, 5, 1, 10]
    rows = [
        {
            **base,
            "answer": "ABCD"[i],
            "data_id": f"pic_{i}",
            "data_type": "image" if kind < 10 else "video",
            "question_id": str(100 + i),
            "question_type_id": kind,
            "segment": [],
            **(changes or {}),
        }
        for i, kind in enumerate(kinds)
    ]
    folder.mkdir(exist_ok=True)
    content = {"questions": rows, "question_type": {"Instances Counting": 5, "Scene Understanding": 1, "Action": 10}}
    (folder / "SEED-Bench.json").write_text(json.dumps(content))
    return folder / "SEED-Bench.json"


def write_mme(folder: Path, tasks: dict[str, list[str]], *, absent: tuple[str, ...] = ()) -> Path:
    (folder / "questions").mkdir(parents=True)
    for task, images in tasks.items():
        lines = [f"{image}\tIs it {word}?\t{answer}" for image in images for word, answer in (("x", "Yes"), ("y", "No"))]
        (folder / f"questions/{task}.txt").write_text("\n".join(lines) + "\n")
        (folder / f"images/{task}").mkdir(parents=True)
        for image in images:
            if image not in absent:
                (folder / f"images/{task}/{image}").write_bytes(b"")
    return folder


def mmbench_rows() -> list[dict[str, str]]:
    return [
        *rotations(1, ["cat", "NA"], "NA", png(1), split="dev", category="scene"),
        *rotations(2, ["one", "two", "three"], "two", png(2), split="dev", category="count"),
    ]


GREF_HEIGHT, GREF_WIDTH = 10, 40


def gref_columns(left: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((GREF_HEIGHT, GREF_WIDTH), bool)
    mask[:, left:right] = True
    return mask


def write_grefcoco(folder: Path, refs: list[dict[str, Any]]) -> Path:
    """Annotations 1, 2, 3 cover the columns 0-9, 10-19 and 20-29; annotation 4 is a crowd."""
    folder.mkdir(exist_ok=True)
    annotations = [
        {
            "id": key,
            "image_id": 7,
            "category_id": 1,
            "iscrowd": int(key == 4),
            "segmentation": [[10 * (key - 1), 0, 10 * key, 0, 10 * key, GREF_HEIGHT, 10 * (key - 1), GREF_HEIGHT]],
        }
        for key in (1, 2, 3, 4)
    ]
    images = [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": GREF_HEIGHT, "width": GREF_WIDTH}]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    rows = [
        {
            "ref_id": i,
            "image_id": 7,
            "split": "val",
            "sentences": [{"sent_id": 10 + i, "sent": f"s{i}"}],
            "category_id": [1],
            **ref,
        }
        for i, ref in enumerate(refs)
    ]
    (folder / "grefs(unc).json").write_text(json.dumps(rows))
    return folder


GREFS: list[dict[str, Any]] = [
    {"ann_id": [1, 2]},  # columns 0-19
    {"ann_id": [3, 4]},  # columns 20-29: the crowd does not count
    {"ann_id": [-1]},
    {"ann_id": [-1]},
    {"ann_id": [1]},
    {"ann_id": [2], "split": "testA"},
]


REASON_HEIGHT, REASON_WIDTH = 20, 30


def polygon(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_pair(folder: Path, name: str, shapes: list[Any], *, text: str = "the tap", sentence: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (REASON_WIDTH, REASON_HEIGHT)).save(folder / f"{name}.jpg")
    row = {"text": [text, "another wording"], "is_sentence": sentence, "shapes": shapes}
    (folder / f"{name}.json").write_text(json.dumps(row))


def reason_mask(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
    mask = np.zeros((REASON_HEIGHT, REASON_WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


REFER_SIZE = (10, 20)


def refer_mask(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros(REFER_SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def write_refer(folder: Path) -> Path:
    """Two references on one picture: two sentences for a box of 10 x 10, one for two overlapping polygons; a third in val."""
    images = folder / "images/mscoco/images/train2014"
    images.mkdir(parents=True)
    Image.new("RGB", REFER_SIZE[::-1]).save(images / "COCO_train2014_000000000007.jpg")
    square = [0, 0, 10, 0, 10, 10, 0, 10]
    shifted = [5, 0, 15, 0, 15, 10, 5, 10]
    shapes = {1: [square], 2: [square, shifted]}
    instances = {
        "images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": REFER_SIZE[0], "width": REFER_SIZE[1]}],
        "annotations": [
            {"id": key, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1], "segmentation": s}
            for key, s in shapes.items()
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    refs, sent_id = [], 0
    for ref_id, (ann_id, split, texts) in enumerate(
        [(1, "test", ["left", "the left box"]), (2, "test", ["both"]), (1, "val", ["x"])]
    ):
        sentences = []
        for text in texts:
            sentences.append({"sent_id": sent_id, "sent": text, "raw": text, "tokens": text.split()})
            sent_id += 1
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": ann_id,
                "category_id": 1,
                "image_id": 7,
                "file_name": f"COCO_train2014_000000000007_{ann_id}.jpg",
                "split": split,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    (folder / "refs(umd).p").write_bytes(pickle.dumps(refs, protocol=2))
    return folder


def small_benchmark(kind: str, folder: Path) -> tuple[Benchmark, str]:
    """A small benchmark of the kind, and a name for its export."""
    match kind:
        case "mme" | "mme_xlsx":
            tasks = {"count": ["a.jpg", "b.jpg"], "OCR": ["c.jpg"]}
            return MME(write_mme(folder / "mme", tasks)), "out" if kind == "mme" else "out.xlsx"
        case "mmbench_xlsx" | "mmbench_tsv":
            return MMBench(write_mmbench(folder / "m.tsv", mmbench_rows())), f"out.{kind.partition('_')[2]}"
        case "ai2d":
            return AI2D(write_tsv(folder / "a.tsv", table_rows())), "out.xlsx"
        case "seed_table":
            return SeedImage(write_tsv(folder / "s.tsv", table_rows())), "out.tsv"
        case "seed":
            return SeedImage(write_seed(folder / "seed")), "out.jsonl"
        case "scienceqa":
            return ScienceQA(write_scienceqa(folder / "sqa")), "out.jsonl"
        case "hardblink":
            return HardBlink(write_hardblink(folder / "h", markers=False)), "out"
        case "blink":
            return BlinkDepth(write_blink(folder / "val-0.parquet")), "out.json"
        case "refer":
            return ReferringSegmentation(write_refer(folder / "r"), split="test"), "out.jsonl"
        case "grefcoco":
            return GeneralisedReferring(write_grefcoco(folder / "g", GREFS), split="val"), "out.jsonl"
        case _:
            write_pair(folder / "val", "a", [{"label": "target", "points": polygon(0, 0, 9, 9)}])
            return ReasonSeg(folder / "val"), "out.jsonl"
