"""How many seconds `perceptio score` takes for files of full size: ``python -m benchmarks.scoring``.

The files are made here: every expression of RefCOCO's three splits for testing (21,586; masks of 480 x 640 pixels), the rows of
MMBench's dev set (4,329 in 1,164 questions), MME's 14 subtasks (2,374 questions), SEED-Bench's image questions (14,232). Each
is scored as the command does it: questions and answers read from the files, checked, scored, with 2000 resamples.
"""

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.catalogue import official
from perceptio_core.evaluation.benchmarks.load import load_benchmark
from perceptio_core.evaluation.benchmarks.mme import COGNITION, PERCEPTION
from perceptio_core.evaluation.interchange.rescore import rescore
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap

SPLITS = {"val": 10834, "testA": 5657, "testB": 5095}
HEIGHT, WIDTH = 480, 640
ROWS, QUESTIONS = 4329, 1164
MME_PAIRS = 1187
SEED_QUESTIONS = 14232


def main() -> None:
    """Print a line for each file: seconds to read and score it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rng = np.random.default_rng(0)
    makers: dict[str, Callable[[Path, np.random.Generator], dict[str, Path]]] = {
        "RefCOCO": make_refcoco,
        "MMBench": make_mmbench,
        "MME": make_mme,
        "SEED-Image": make_seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        for label, make in makers.items():
            root = Path(folder) / label
            for name, predictions in make(root, rng).items():
                start = time.perf_counter()
                benchmark = load_benchmark(official(name, root=root), root=root, pictures=False)
                read = time.perf_counter() - start
                metrics = rescore(benchmark, predictions, bootstrap=Bootstrap())
                seconds = time.perf_counter() - start
                counted = f"{len(benchmark.items)} answers"
                print(f"{metrics[0].name:18} {counted:>14}  questions {read:4.1f} s, in all {seconds:4.1f} s")


def make_refcoco(root: Path, rng: np.random.Generator) -> dict[str, Path]:
    """Three expressions an object, one object an image; predictions are the right mask moved by a few pixels."""
    folder = root / "refcoco"
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    predictions: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    sent_id = 0
    for split, count in SPLITS.items():
        for start in range(0, count, 3):
            key = len(refs)
            left, top = rng.integers(20, 300), rng.integers(20, 200)
            angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radius = 40 + 100 * rng.random(40)
            polygon = np.stack([left + 150 + radius * np.cos(angles), top + 120 + radius * np.sin(angles)], axis=1)
            images.append({"id": key, "file_name": f"{key}.jpg", "height": HEIGHT, "width": WIDTH})
            annotations.append(
                {"id": key, "image_id": key, "category_id": 1, "iscrowd": 0, "segmentation": [polygon.ravel().tolist()]}
            )
            rows, columns = np.mgrid[:HEIGHT, :WIDTH]
            mask = encode((rows - top - 125) ** 2 + (columns - left - 155) ** 2 + 900 * np.sin(rows / 3) < 110**2)
            ids = range(sent_id, sent_id + min(3, count - start))
            sent_id = ids.stop
            sentences = [{"sent_id": i, "sent": f"thing {i}", "raw": "", "tokens": []} for i in ids]
            refs.append({"ref_id": key, "ann_id": key, "image_id": key, "split": split, "sentences": sentences})
            predictions[split] += [{"ref_id": key, "sent_id": i, "segmentation": mask} for i in ids]
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return {f"refcoco_{split.lower()}": _jsonl(root / f"{split}.jsonl", rows) for split, rows in predictions.items()}


def make_mmbench(root: Path, rng: np.random.Generator) -> dict[str, Path]:
    """As many rows and questions as MMBench_DEV_EN.tsv."""
    (root / "mmbench").mkdir(parents=True)
    header = ["index", "question", "hint", *"ABCD", "answer", "category", "split"]
    lines, said = ["\t".join(header)], ["index\tprediction"]
    for row in range(ROWS):
        index = row % QUESTIONS + row // QUESTIONS * 1_000_000
        lines.append(f"{index}\tWhat is it?\t\tred\tgreen\tblue\tgrey\t{rng.choice(list('ABCD'))}\tcolour {row % 20}\tdev")
        said.append(f"{index}\t{rng.choice(list('ABCD'))}. because of its colour")
    (root / "mmbench/MMBench_DEV_EN.tsv").write_text("\n".join(lines) + "\n")
    (root / "said.tsv").write_text("\n".join(said) + "\n")
    return {"mmbench_dev_en": root / "said.tsv"}


def make_mme(root: Path, rng: np.random.Generator) -> dict[str, Path]:
    """As many questions as MME's 14 files."""
    for folder in (root / "mme/questions", root / "said"):
        folder.mkdir(parents=True)
    tasks = PERCEPTION + COGNITION
    for number, task in enumerate(tasks):
        pairs = MME_PAIRS // len(tasks) + (number < MME_PAIRS % len(tasks))
        lines = [f"{i}.jpg\tIs it {word}?\t{answer}" for i in range(pairs) for word, answer in (("so", "Yes"), ("not", "No"))]
        (root / f"mme/questions/{task}.txt").write_text("\n".join(lines) + "\n")
        (root / f"said/{task}.txt").write_text("".join(f"{line}\t{rng.choice(['Yes', 'No'])}\n" for line in lines))
    return {"mme": root / "said"}


def make_seed(root: Path, rng: np.random.Generator) -> dict[str, Path]:
    """As many image questions as SEED-Bench.json."""
    (root / "seedbench").mkdir(parents=True)
    choices = {f"choice_{letter}": f"choice {letter}" for letter in "abcd"}
    rows = [
        {
            **choices,
            "answer": str(rng.choice(list("ABCD"))),
            "data_id": str(i),
            "data_type": "image",
            "question": "What is it?",
            "question_id": str(i),
            "question_type_id": 1 + i % 9,
        }
        for i in range(SEED_QUESTIONS)
    ]
    kinds = {f"type {i}": i for i in range(1, 10)}
    (root / "seedbench/SEED-Bench.json").write_text(json.dumps({"questions": rows, "question_type": kinds}))
    said = [{"question_id": row["question_id"], "prediction": str(rng.choice(list("ABCD")))} for row in rows]
    return {"seedbench": _jsonl(root / "said.jsonl", said)}


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


if __name__ == "__main__":
    main()
