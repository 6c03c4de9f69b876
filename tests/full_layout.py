"""Every data set and benchmark of the paper profiles as a handful of rows in its official layout, enough to run every stage.

Pictures are blocks of random colours with two ellipses, so that no two look alike and each object has a mask. COCO's numbers
tell pictures apart across data sets: those of a test split are used nowhere else.
"""

import base64
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.mme import COGNITION, PERCEPTION

WIDTH, HEIGHT = 160, 120
"""Of the pictures that masks are drawn for; tests that need one tile a picture patch them."""
WIDE = (160, 120)
"""Of LLaVA's and SEED-Bench's pictures, whatever the others are: InternVL cuts 4 : 3 into 12 tiles."""
SPLITS = {"train": range(1, 13), "val": range(13, 18), "testA": range(18, 21), "testB": range(21, 24)}
"""Numbers of the pictures of COCO 2014 by RefCOCO's split; of RefCOCOg testA and testB are test."""
COCO_2017 = range(101, 109)
CATEGORIES = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 18, "name": "dog", "supercategory": "animal"}]
PARTED = ("artwork", "celebrity", "landmark", "posters", "scene")
"""Subtasks of MME that lie in images/ and questions_answers_YN/."""
CODES = "<DEPTH_START>" + "".join(f"<DEPTH_{number}>" for number in range(100)) + "<DEPTH_END>"


def full_layout(root: Path) -> Path:
    """Write all of it below `root`, which must not exist yet; returns it."""
    for write in (_coco_2014, _coco_2017, _grandf, _aurora, _llava, _hardblink, _tables, _seedbench, _mme, _scienceqa, _blink):
        write(root)
    return root


def picture(name: str, *, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture of this name: always the same, and unlike any other."""
    size = size or (WIDTH, HEIGHT)
    draw = np.random.default_rng(list(name.encode()))
    blocks = Image.fromarray(draw.integers(0, 256, (16, 17, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(blocks)
    for colour, box in zip(("red", "blue"), _boxes(size), strict=True):
        pen.ellipse(box, fill=colour)
    return blocks


def _boxes(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Of the two ellipses: left, top, right, bottom."""
    width, height = size
    return [(width // 16, height // 4, width // 2 - width // 16, height - 8), (width // 2 + 4, 8, width - 8, height // 2)]


def save(root: Path, path: str, *, form: str = "JPEG", size: tuple[int, int] | None = None) -> None:
    """Write the picture of a path."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    picture(path, size=size).save(root / path, form, **({"quality": 95} if form == "JPEG" else {}))


def _write(root: Path, path: str, content: Any) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(json.dumps(content), encoding="utf-8")


def _polygon(box: tuple[int, int, int, int]) -> list[float]:
    left, top, right, bottom = box
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y = (left + right) / 2 + (right - left) / 2 * np.cos(angles), (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)
    return [round(float(value), 2) for value in np.stack([x, y], axis=1).reshape(-1)]


def _instances(numbers: list[int], file_name: str) -> dict[str, Any]:
    images = [
        {"license": 3, "file_name": file_name.format(number), "height": HEIGHT, "width": WIDTH, "id": number}
        for number in numbers
    ]
    annotations = [
        {
            "segmentation": [_polygon(box)],
            "area": float((box[2] - box[0]) * (box[3] - box[1])),
            "iscrowd": 0,
            "image_id": number,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "category_id": CATEGORIES[place]["id"],
            "id": number * 10 + place,
        }
        for number in numbers
        for place, box in enumerate(_boxes((WIDTH, HEIGHT)))
    ]
    return {"info": {"version": "1.0"}, "licenses": [], "images": images, "annotations": annotations, "categories": CATEGORIES}


def _coco_2014(root: Path) -> None:
    """train2014, and the three folders of REFER."""
    numbers = [number for split in SPLITS.values() for number in split]
    for number in numbers:
        save(root, f"coco/train2014/COCO_train2014_{number:012d}.jpg")
    for folder, author, said in (
        ("refcoco", "unc", "{} thing"),
        ("refcoco+", "unc", "{} one"),
        ("refcocog", "umd", "the {} oval"),
    ):
        refs = []
        for split, some in SPLITS.items():
            for number in some:
                for place, side in enumerate(("left red", "right blue")):
                    texts = [said.format(side), f"{said.format(side)} here"]
                    sentences = [
                        {"tokens": text.split(), "raw": text, "sent": text, "sent_id": number * 100 + place * 10 + row}
                        for row, text in enumerate(texts)
                    ]
                    refs.append(
                        {
                            "ref_id": number * 10 + place,
                            "ann_id": number * 10 + place,
                            "image_id": number,
                            "category_id": CATEGORIES[place]["id"],
                            "file_name": f"COCO_train2014_{number:012d}_{place}.jpg",
                            "split": "test" if author == "umd" and split.startswith("test") else split,
                            "sentences": sentences,
                            "sent_ids": [sentence["sent_id"] for sentence in sentences],
                        }
                    )
        _write(root, f"{folder}/instances.json", _instances(numbers, "COCO_train2014_{:012d}.jpg"))
        (root / folder / f"refs({author}).p").write_bytes(pickle.dumps(refs, protocol=2))


def _coco_2017(root: Path) -> None:
    for number in COCO_2017:
        save(root, f"coco/train2017/{number:012d}.jpg")
    _write(root, "coco/annotations/instances_train2017.json", _instances(list(COCO_2017), "{:012d}.jpg"))


def _mask(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = Image.new("1", (WIDTH, HEIGHT))
    ImageDraw.Draw(mask).ellipse(box, fill=1)
    return np.asarray(mask)


def _grandf(root: Path) -> None:
    caption = "A red oval stands to the left of a blue oval."
    groundings = {
        phrase: {
            "token_positives": [caption.index(phrase), caption.index(phrase) + len(phrase)],
            "rle_masks": [encode(_mask(box))],
        }
        for phrase, box in zip(("red oval", "blue oval"), _boxes((WIDTH, HEIGHT)), strict=True)
    }
    people = [f"sa_{number}.jpg" for number in range(1, 6)]
    for name in people:
        save(root, f"GranDf_HA_images/train/{name}")
    psg = [f"train2017/{number:012d}.jpg" for number in COCO_2017]
    for file, names in (("GranDf_HA_GCG_train.json", people), ("OpenPsgGCG_train.json", psg)):
        rows = [{"image_id": name, "file_name": name, "caption": caption, "groundings": groundings} for name in names]
        _write(root, f"GranDf/annotations/train/{file}", rows)


def _aurora(root: Path) -> None:
    rows = []
    for number in range(1, 5):
        name = f"ADE_train_{number:08d}.jpg"
        for folder in ("ADE20k", "ADE_blink"):
            save(root, f"aurora/images/{folder}/{name}")
        where = "Point A is located at (x = 20 y = 30), Point B is located at (x = 90 y = 60)."
        thought = f"{where} The depth map for the image is {CODES}. Point B has a higher pixel value, so the answer is (B)"
        for folder, question, answer in (
            ("ADE20k", "What is the depth map for the image?", CODES),
            ("ADE_blink", "Which point is closer to the camera?", thought),
            ("ADE_blink", "Which point is closer to the camera, A or B?", "(B)"),
        ):
            said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            rows.append({"id": f"{number}", "image": f"/data/{folder}/{name}", "conversations": said})
    _write(root, "aurora/train_depth_annealing_data.json", rows + rows[:3])  # epochs strung together


def _llava(root: Path) -> None:
    names = [f"coco/train2017/{number:012d}.jpg" for number in list(COCO_2017)[:3]]
    for folder in ("gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2"):
        for number in range(1, 4):
            names.append(f"{folder}/{number}.jpg")
            save(root, names[-1], size=WIDE)
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        said = ["<image>\nWhat is to the left?", "A red oval.", "And to the right?", "A blue oval."]
        turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(said)]
        rows.append({"id": f"{number:09d}", "image": name, "conversations": turns})
    rows.append({"id": "text", "model": "", "conversations": rows[0]["conversations"]})  # 40,688 rows of ShareGPT have no image
    _write(root, "llava/llava_v1_5_mix665k.json", rows)


def _hardblink(root: Path) -> None:
    for points in (3, 4, 5):
        questions, answers = [], []
        for number in range(4):
            save(root, f"hardblink/images/blink{points}pointscenter/{number}.png", form="PNG", size=(336, 336))
            text = f"{points} points are circled on the image. Which point is closest to the camera?"
            questions.append({"question_id": number, "image": f"{number}.png", "text": text, "category": "depth"})
            answers.append({"question_id": number, "text": f"({'ABCDE'[number % points]})"})
        for part, rows in (("questions", questions), ("answers", answers)):
            path = root / f"hardblink/{part}/blink_{points}pointscenter_{part}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _encoded(name: str) -> str:
    stream = io.BytesIO()
    picture(name).save(stream, "JPEG")
    return base64.b64encode(stream.getvalue()).decode()


def _tables(root: Path) -> None:
    """MMBench with two rotations a question, the second's picture being the first's; and AI2D."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
    columns += ["comment", "split"]
    rows = []
    for number in range(1, 5):
        same = {"question": "What is to the left?", "hint": "", "C": "", "D": "", "category": "object", "source": "made"}
        same |= {"l2-category": "perception", "comment": "", "split": "dev"}
        rows.append(same | {"index": number, "A": "red", "B": "blue", "answer": "A", "image": _encoded(f"mmbench {number}")})
        rows.append(same | {"index": number + 1_000_000, "A": "blue", "B": "red", "answer": "B", "image": number})
    _tsv(root / "mmbench/MMBench_DEV_EN.tsv", columns, rows)
    columns = ["index", "question", "A", "B", "C", "D", "answer", "category", "image"]
    diagrams = [
        {"index": number, "question": "Which letter?", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "C", "category": "x"}
        | {"image": _encoded(f"ai2d {number}")}
        for number in range(4)
    ]
    _tsv(root / "ai2d/AI2D_TEST.tsv", columns, diagrams)


def _tsv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    lines = ["\t".join(columns), *("\t".join(str(row[column]) for column in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _seedbench(root: Path) -> None:
    """Pictures have no suffix, and some rows are about videos."""
    kinds = {"Scene Understanding": 1, "Text Recognition": 9, "Action Recognition": 10}
    rows = []
    for number in range(5):
        data_id = f"{1454426 + number}_2591111986"
        save(root, f"seedbench/SEED-Bench-image/{data_id}", size=WIDE)
        choices = {f"choice_{letter}": text for letter, text in zip("abcd", ("red", "blue", "green", "none"), strict=True)}
        row = {"answer": "AB"[number % 2], "data_id": data_id, "data_type": "image", "question": "What is there?"}
        rows.append(row | choices | {"question_id": str(number), "question_type_id": (1, 9)[number % 2]})
    rows.append(rows[0] | {"data_type": "video", "question_id": "v1", "question_type_id": 10, "segment": [0, 1]})
    _write(root, "seedbench/SEED-Bench.json", {"questions": rows, "question_type": kinds})


def _mme(root: Path) -> None:
    """As the makers' archive unpacks."""
    for task in PERCEPTION + COGNITION:
        parted = task in PARTED
        suffix, form = (".png", "PNG") if task in COGNITION else (".jpg", "JPEG")
        for number in (1, 2):
            save(root, f"mme/{task}{'/images' if parted else ''}/{number:04d}{suffix}", form=form)
            text = root / f"mme/{task}{'/questions_answers_YN' if parted else ''}/{number:04d}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("Is it red? Please answer yes or no.\tYes\nIs it green? Please answer yes or no.\tNo\n")


def _scienceqa(root: Path) -> None:
    problems = {}
    for number in range(1, 6):
        image = None if number == 5 else "image.png"
        problem = {"question": "Which?", "choices": ["one", "two"], "answer": number % 2, "hint": "", "image": image}
        problems[str(number)] = problem | {"subject": "natural science", "split": "test", "task": "closed choice"}
        if image:
            save(root, f"scienceqa/images/test/{number}/image.png", form="PNG")
    _write(root, "scienceqa/problems.json", problems)
    _write(root, "scienceqa/pid_splits.json", {"train": [], "val": [], "test": list(problems)})


def _blink(root: Path) -> None:
    rows = []
    for number in range(1, 5):
        content = {"bytes": base64.b64decode(_encoded(f"blink {number}")), "path": f"{number}.jpg"}
        row = {"idx": f"val_Relative_Depth_{number}", "sub_task": "Relative_Depth", "image_1": content, "image_2": None}
        row |= {
            "question": "Which point is closer?",
            "choices": ["A is closer", "B is closer"],
            "answer": f"({'AB'[number % 2]})",
        }
        rows.append(row | {"prompt": "Which point is closer to the camera?\n(A) A is closer\n(B) B is closer"})
    path = root / "blink/Relative_Depth/val-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
