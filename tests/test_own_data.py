"""A person's own pictures, table and masks: what is read, how it is split, and what `perceptio new` makes of it."""

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.check_profile import inconsistencies
from perceptio_core.data.readers.kinds import read_dataset
from perceptio_core.data.readers.mask_pictures import is_numbered, read_mask
from perceptio_core.data.readers.own_split import of_split, place
from perceptio_core.data.readers.questions import mask_question, question_records, table_columns
from perceptio_core.data.records import Record, Refused
from perceptio_core.data.rle import area, decode, encode
from perceptio_core.params.profile import load_profile
from perceptio_core.params.sources import DatasetParams
from pipeline.data_places import places
from pipeline.new import new
from pipeline.own_data import read_own, validation_share
from pipeline.settings import select

REPOSITORY = Path(__file__).resolve().parent.parent
SIZE = (24, 16)


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, *, left: int = 4, value: int = 255) -> Path:
    """A mask whose first columns are the object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels_HW = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    pixels_HW[:, :left] = value
    Image.fromarray(pixels_HW).save(path)
    return path


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def parted(path: Path, **more: Any) -> tuple[list[Record], list[Refused]]:
    found = list(question_records(path, **{"source": "q", "split": "train", "root": path.parent, "images": None, **more}))
    return [row for row in found if isinstance(row, Record)], [row for row in found if isinstance(row, Refused)]


# --------------------------------------------------------------------------------------------- columns


def test_columns_have_other_names_too(tmp_path: Path) -> None:
    rows = [{"File Name": "a.png", "PROMPT": "What?", "note": "x", " Response ": "A dog."}]
    path = table(tmp_path / "q.csv", rows)
    assert table_columns(path) == {"image": "File Name", "question": "PROMPT", "answer": " Response "}
    (record,), _ = parted(path)
    assert (record.image, record.turns) == ("a.png", (("What?", "A dog."),))
    (tmp_path / "q.jsonl").write_text(json.dumps({"img": "a.png", "query": "What?", "label": "dog", "answer": "cat"}) + "\n")
    (record,), _ = parted(tmp_path / "q.jsonl")
    assert record.turns == (("What?", "cat"),), "the column's own name comes first"


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "q.csv", [{"image": "a.png", "Image": "b.png", "question": "?", "answer": "x"}])
    with pytest.raises(ValueError, match=r"q\.csv: the columns 'image' and 'Image' have one name"):
        parted(path)


@pytest.mark.parametrize(("name", "delimiter"), [("q.tsv", "\t"), ("q.csv", ";"), ("q.csv", "\t")])
def test_spreadsheets_write_other_delimiters(tmp_path: Path, name: str, delimiter: str) -> None:
    path = table(tmp_path / name, [{"image": "a.png", "question": "What, then?", "answer": "1,5"}], delimiter)
    (record,), refused = parted(path)
    assert (record.turns, refused) == ((("What, then?", "1,5"),), [])


def test_absolute_paths_into_the_folder_are_taken(tmp_path: Path) -> None:
    """As people write them (X-PLUG/mPLUG-DocOwl#82 has a table of them); others stay refused."""
    rows = [{"image": str(tmp_path / "p/a.png"), "question": "?", "answer": "x"}]
    rows.append({"image": str(tmp_path / "a.png"), "question": "?", "answer": "x"})
    records, refused = parted(table(tmp_path / "q.csv", rows), images="p")
    assert [record.image for record in records] == ["p/a.png"]
    assert "leads out of the image folder" in refused[0].reason


# --------------------------------------------------------------------------------------------- masks


def test_a_row_with_a_mask_asks_for_it(tmp_path: Path) -> None:
    mask(tmp_path / "m/a.png", left=3)
    rows = [
        {"image": "a.png", "question": "the dog", "answer": "", "mask": "m/a.png"},
        {"image": "a.png", "question": "Where is it?", "answer": "Left.", "mask": "m/a.png"},
        {"image": "a.png", "question": "What is it?", "answer": "A dog.", "mask": ""},
        {"image": "a.png", "question": "the cat", "answer": "", "mask": "m/none.png"},
        {"image": "a.png", "question": "the cat", "answer": "", "mask": "../a.png"},
        {"image": "a.png", "question": "the cat", "answer": "", "mask": " "},
    ]
    records, refused = parted(table(tmp_path / "q.csv", rows))
    assert [(record.task, record.turns, record.expression) for record in records] == [
        ("referring", (("Please segment the dog in this image.", "Sure, here it is."),), "the dog"),
        ("referring", (("Where is it?", "Left."),), "Where is it?"),
        ("conversation", (("What is it?", "A dog."),), None),
    ]
    assert [area(record.masks[0]) for record in records if record.masks] == [3 * SIZE[1]] * 2
    reasons = [row.reason for row in refused]
    assert reasons[0] == "mask m/none.png: no such file"
    assert "leads out of the image folder" in reasons[1]
    assert reasons[2] == "answer must be a text that is not empty, got ''"


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("the red car", "Please segment the red car in this image."),
        ("Segment the red car", "Segment the red car"),
        ("show the mask of the dog", "show the mask of the dog"),
        ("Where is the dog?", "Where is the dog?"),
        ("左边的狗", "Please segment 左边的狗 in this image."),
        ("狗在哪里？", "狗在哪里？"),
    ],
)
def test_what_names_a_thing_and_what_asks(text: str, asked: str) -> None:
    assert mask_question(text) == asked


def test_a_mask_is_what_is_neither_black_nor_transparent(tmp_path: Path) -> None:
    """PNGs of every kind that people export; as reported in bytedance/Sa2VA#46, with numbers of several objects."""
    expected_HW = np.zeros((6, 8), bool)
    expected_HW[1:4, 2:7] = True
    numbers_HW = expected_HW.astype(np.uint8)
    halves_HW = numbers_HW.copy()
    halves_HW[2:4, 2:7] = 2
    palette = Image.fromarray(numbers_HW, mode="P")
    palette.putpalette([0, 0, 0, 200, 30, 30])
    cut_out = np.full((6, 8, 4), 90, np.uint8)
    cut_out[..., 3] = np.where(expected_HW, 255, 0)
    soft = np.dstack([np.where(expected_HW, 255, 0).astype(np.uint8)] * 3)
    pictures = {
        "01": Image.fromarray(numbers_HW),
        "0255": Image.fromarray(255 * numbers_HW),
        "numbers": Image.fromarray(halves_HW),
        "16": Image.fromarray(numbers_HW.astype(np.uint16)),
        "bits": Image.fromarray(expected_HW),
        "palette": palette,
        "cut_out": Image.fromarray(cut_out),
        "rgb": Image.fromarray(soft),
    }
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
        assert np.array_equal(decode(read_mask(tmp_path / f"{name}.png")), expected_HW), name
    assert [name for name in pictures if is_numbered(tmp_path / f"{name}.png")] == ["numbers"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"no picture", "it cannot be read as a PNG"),
        ("black", "all of it is black or transparent"),
        ("jpeg", "it cannot be read as a PNG"),
        ("big", "6 x 4 pixels, at most 20 are allowed"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, content: bytes | str | None, reason: str) -> None:
    path = tmp_path / "m.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        image = Image.new("L", (6, 4), 0 if content == "black" else 255)
        image.save(path, format="JPEG" if content == "jpeg" else "PNG")
    with pytest.raises(ValueError, match=f"^{reason}$"):
        read_mask(path, max_pixels=20 if content == "big" else 100)


# --------------------------------------------------------------------------------------------- the split


def test_the_side_of_a_picture_is_its_own(tmp_path: Path) -> None:
    assert place("photos/a.jpg") == int(hashlib.sha256(b"photos/a.jpg").hexdigest()[:16], 16) / 16**16
    assert place("photos/a.jpg") == pytest.approx(0.346998, abs=1e-6)
    rows = [{"image": f"{i // 2}.png", "question": f"{i}?", "answer": "x"} for i in range(200)]
    table(tmp_path / "q.csv", rows)
    sides = {}
    for split in ("train", "val"):
        entry = DatasetParams(name="q", kind="questions", path="q.csv", split=split, images="p", validation_share=0.3)  # type: ignore[arg-type]
        sides[split] = [record for record in read_dataset(entry, root=tmp_path) if isinstance(record, Record)]
        assert {record.split for record in sides[split]} == {split}
    pictures = {split: {record.image for record in records} for split, records in sides.items()}
    assert len(sides["train"]) + len(sides["val"]) == 200
    assert not pictures["train"] & pictures["val"], "all that is said about a picture is on one side"
    assert pictures["val"] == {f"p/{i}.png" for i in range(100) if place(f"p/{i}.png") < 0.3}
    assert 18 <= len(pictures["val"]) <= 42


def test_refused_rows_are_told_once() -> None:
    rows = [Refused(file="q.csv#0", reason="x")]
    assert [list(of_split(rows, split=split, share=0.5)) for split in ("train", "val")] == [rows, []]


# --------------------------------------------------------------------------------------------- perceptio new


def own(folder: Path, *, pictures: int = 20, masks: int = 5) -> Path:
    """Pictures with a question each, and masks of the last of them."""
    rows = [{"image": f"{i}.png", "question": "Which?", "answer": ["yes", "two"][i % 2], "mask": ""} for i in range(pictures)]
    for i in range(pictures):
        picture(folder / f"pictures/{i}.png", seed=i)
    for i in range(pictures - masks, pictures):
        mask(folder / f"masks/{i}.png")
        rows.append({"image": f"{i}.png", "question": "the dog", "answer": "", "mask": f"masks/{i}.png"})
    return table(folder / "q.csv", rows)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the profiles of this repository and a params.yaml, as working directory."""
    folder = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "profiles", folder / "profiles")
    shutil.copy(REPOSITORY / "params.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


def made(name: str, folder: Path, **more: Any) -> Any:
    options = {"pictures": folder / "pictures", "questions": folder / "q.csv", "coco": None, **more}
    new(name, **options)
    return load_profile(name)


def test_a_new_profile_says_what_it_assumed(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(tmp_path / "data")
    picture(tmp_path / "data/pictures/in no row.png")
    profile = made("mine", tmp_path / "data")
    said = capsys.readouterr().out
    for line in (
        "pictures    20 below",
        "1 more there are in no row",
        "columns: image = 'image', question = 'question', answer = 'answer', mask = 'mask'",
        "questions   20, with 2 different answers, most often 'yes' 10, 'two' 10",
        "masks       5: 5 name a thing, asked as 'Please segment ... in this image.'; 0 ask as they stand",
        "scores on photographs will be low",
        "Next: perceptio repro --profile mine",
    ):
        assert line in said, said
    text = (checkout / "profiles/mine.yaml").read_text()
    assert all(f"# {line}".rstrip() in text for line in said.splitlines()[2:-2])
    assert [(entry.kind, entry.split) for entry in profile.sources.datasets] == [("questions", "train"), ("questions", "val")]
    assert [entry.kind for entry in profile.evaluate.benchmarks] == ["questions", "masks"]
    assert profile.evaluate.benchmarks[1].except_variants == ("control",)
    found = [re.search(rf"{what} +(\d+) pictures: (\d+) questions, (\d+) masks", said) for what in ("training", "validation")]
    (train, _, train_masks), (val, _, val_masks) = (map(int, one.groups()) for one in found if one)
    assert train + val == 20
    assert 4 <= val <= 10
    assert train_masks + val_masks == 5
    assert val_masks >= 1
    assert [place.path for place in places(profile)] == ["q.csv", "pictures"]
    assert list(inconsistencies(profile)) == []
    before = (checkout / "profiles/mine.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"profiles/mine\.yaml exists already; remove it, or choose another name"):
        made("mine", tmp_path / "data")
    (checkout / "profiles/mine.yaml").unlink()
    made("mine", tmp_path / "data")
    assert (checkout / "profiles/mine.yaml").read_bytes() == before


def test_a_new_profile_runs_with_its_control_by_default(checkout: Path, tmp_path: Path) -> None:
    own(tmp_path / "data")
    profile = made("mine", tmp_path / "data")
    assert select(profile="mine").active == ("full", "control")
    assert not profile.variant("control").spans.segmentation
    assert select(profile="realdata").active == ("full",)
    text = (checkout / "profiles/mine.yaml").read_text()
    (checkout / "profiles/mine.yaml").write_text(text.replace("active: [full, control]", "active: [full, c]"))
    with pytest.raises(ValueError, match=r"active: expected a list of names under variants \(full, control\)"):
        load_profile("mine")


@pytest.mark.usefixtures("checkout")
def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image": f"{i}.png", "question": "Which?", "answer": "nan" if i == 7 else "x"} for i in range(12)]
    for i in range(12):
        picture(tmp_path / f"data/pictures/{i}.png", seed=i)
    (tmp_path / "data/pictures/3.png").write_bytes(b"no picture")
    shutil.copy(tmp_path / "data/pictures/4.png", tmp_path / "data/pictures/5.png")
    rows += [{"image": "gone.png", "question": "Which?", "answer": "x"}, {"image": "1.png", "question": "", "answer": "x"}]
    rows += [{"image": "1.png", "question": "Which?", "answer": ""}, {"image": "1.png", "question": "which", "answer": "y"}]
    table(tmp_path / "data/q.csv", rows)
    made("mine", tmp_path / "data")
    said = capsys.readouterr().out
    assert "pictures    11 below" in said
    assert "1 files are copies of others" in said
    assert "1 x question must be a text that is not empty, got '' (such as q.csv, row 14)" in said
    assert "1 x answer must be a text that is not empty, got '' (such as q.csv, row 15)" in said
    assert "No such file or directory (such as pictures/gone.png)" in said
    assert "(such as pictures/3.png)" in said
    assert "2 rows and objects of such pictures" in said
    assert "1 ask again what another row asks about the same picture" in said
    assert "1 have an answer such as 'nan' or 'none', which is trained and scored as it stands" in said
    assert "no mask to score: nothing is said about segmentation" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": "none"}, r"--pictures .*none: not a folder"),
        ({"questions": "none.csv"}, r"--questions .*none\.csv: no such file"),
        ({"questions": "q.xlsx"}, r"--questions .*q\.xlsx: allowed are \.csv, \.tsv, \.jsonl, \.parquet"),
        ({"coco": "c.txt"}, r"--coco .*c\.txt: allowed are \.json"),
        ({"questions": None}, r"give --questions TABLE, --coco FILE, or both"),
        ({"base": "mini"}, r"--base mini: allowed are the profiles for real pictures, .*perceptio-1b"),
        ({"steps": 0}, r"--steps 0: at least 1"),
        ({"name": "my set"}, r"'my set': the name of a profile is made of letters, digits, - and _"),
        ({"name": "realdata"}, r"profiles/realdata\.yaml exists already"),
        ({"questions": "columns.csv"}, r"columns\.csv: lacks the columns question, answer; it has image, text"),
        ({"questions": "list.jsonl"}, r"list\.jsonl: a \.jsonl has an object a line, each a row of the table"),
        ({"questions": "few.csv"}, r"3 pictures can be used; at least 8 are needed"),
        (
            {"questions": "bad.csv"},
            r"bad\.csv: no train records .*\n  1 x answer must be a text .* \(such as bad\.csv, row 1\)",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    checkout: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """`list.jsonl` is a JSON list under the name of lines, as in OpenGVLab/InternVL#893."""
    data = tmp_path / "data"
    own(data, pictures=3, masks=0)
    table(data / "few.csv", [{"image": f"{i}.png", "question": "?", "answer": "x"} for i in range(3)])
    table(data / "columns.csv", [{"image": "a.png", "text": "?"}])
    table(data / "bad.csv", [{"image": "0.png", "question": "?", "answer": ""}])
    (data / "list.jsonl").write_text(json.dumps([{"image": "0.png", "question": "?", "answer": "x"}], indent=1))
    for name in ("q.xlsx", "c.txt"):
        (data / name).touch()
    before = sorted((checkout / "profiles").iterdir())
    paths = {
        key: data / value if value and key in ("pictures", "questions", "coco") else value for key, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        made(paths.pop("name", "mine"), data, **paths)
    assert sorted((checkout / "profiles").iterdir()) == before


def coco_file(folder: Path, pictures: int) -> Path:
    """A box in each picture, of one of two categories."""
    box = [2, 2, 12, 2, 12, 10, 2, 10]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(pictures)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i % 2, "segmentation": [box], "bbox": [2, 2, 10, 8], "iscrowd": 0}
            for i in range(pictures)
        ],
        "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
    (folder / "c.json").write_text(json.dumps(content))
    return folder / "c.json"


@pytest.mark.usefixtures("checkout")
def test_tasks_that_the_data_do_not_have_are_not_drawn(tmp_path: Path) -> None:
    """Questions alone, masks alone, a COCO file alone: no task without samples (as Meituan-AutoML/MobileVLM#11 met one)."""
    own(tmp_path / "words", masks=0)
    questions = made("words", tmp_path / "words")
    assert (questions.cotrain.mixture.referring.weight, questions.cotrain.mixture.conversation.weight) == (0.0, 0.4)
    assert [entry.kind for entry in questions.evaluate.benchmarks] == ["questions"]
    own(tmp_path / "masks", masks=20)
    rows = [row for row in csv.DictReader((tmp_path / "masks/q.csv").open()) if row["mask"]]
    for row in rows:
        del row["answer"]
    table(tmp_path / "masks/q.csv", rows)
    masks = made("masks", tmp_path / "masks")
    assert (masks.cotrain.mixture.referring.weight, masks.cotrain.mixture.conversation.weight) == (0.4, 0.0)
    assert [entry.kind for entry in masks.evaluate.benchmarks] == ["masks"]
    coco = made("objects", tmp_path / "words", questions=None, coco=coco_file(tmp_path / "words", 20))
    assert [(entry.kind, entry.label) for entry in coco.evaluate.benchmarks] == [("masks", "objects")]
    assert [entry.name for entry in coco.sources.datasets] == ["objects_objects"] * 2
    both = made("both", tmp_path / "words", coco=tmp_path / "words/c.json")
    assert {(entry.name, entry.split) for entry in both.sources.datasets} == {
        (name, split) for name in ("both", "both_objects") for split in ("train", "val")
    }
    assert [entry.label for entry in both.evaluate.benchmarks] == ["questions", "objects"]


def test_validation_grows_until_each_kind_is_in_it(tmp_path: Path) -> None:
    own(tmp_path, pictures=40, masks=0)
    rows = list(csv.DictReader((tmp_path / "q.csv").open()))
    names = sorted((f"pictures/{i}.png" for i in range(40)), key=place)
    for name in names[11:13]:  # the first pictures with a mask are the twelfth and the thirteenth
        file = mask(tmp_path / f"masks/{Path(name).name}")
        rows.append(
            {"image": Path(name).name, "question": "the dog", "answer": "", "mask": file.relative_to(tmp_path).as_posix()}
        )
    table(tmp_path / "q.csv", rows)
    data = read_own("mine", pictures=tmp_path / "pictures", questions=tmp_path / "q.csv", coco=None)
    share = validation_share(data)
    assert [name for name in names if place(name) < share] == names[:12]
    table(tmp_path / "q.csv", rows[:40])
    data = read_own("mine", pictures=tmp_path / "pictures", questions=tmp_path / "q.csv", coco=None)
    assert [name for name in names if place(name) < validation_share(data)] == names[:8]


@pytest.mark.usefixtures("checkout")
def test_published_models_come_with_the_sizes_of_their_profile(tmp_path: Path) -> None:
    """Batches that one GPU takes, a codebook that does not see few maps for 50,000 steps, no test set that is not there."""
    own(tmp_path / "data")
    profile, paper = made("mine", tmp_path / "data", base="perceptio-1b"), load_profile("perceptio-1b")
    assert profile.foundations == paper.foundations
    assert profile.cotrain.lora == paper.cotrain.lora
    assert (profile.cotrain.batch_size, profile.cotrain.processes, profile.cotrain.accumulation) == (16, 1, 8)
    assert profile.depth_codebook == paper.depth_codebook.model_copy(update={"steps": 200, "checkpoint_every": 100})
    assert profile.sources.held_out == ()
    assert profile.report.caveat.startswith("A gain counts")


@pytest.mark.usefixtures("checkout")
def test_paths_of_a_table_may_begin_at_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(tmp_path / "data")
    rows = [row | {"image": f"pictures/{row['image']}"} for row in csv.DictReader((tmp_path / "data/q.csv").open())]
    table(tmp_path / "data/q.csv", rows)
    profile = made("mine", tmp_path / "data")
    assert f"images below {tmp_path}/data, masks below {tmp_path}/data" in capsys.readouterr().out
    assert {entry.images for entry in profile.sources.datasets} == {"."}


@pytest.mark.usefixtures("checkout")
def test_masks_of_another_size_than_the_picture_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(tmp_path / "data")
    Image.new("L", (8, 8), 255).save(tmp_path / "data/masks/19.png")
    halves_HW = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    halves_HW[:4], halves_HW[4:8] = 1, 2
    Image.fromarray(halves_HW).save(tmp_path / "data/masks/18.png")
    made("mine", tmp_path / "data")
    said = capsys.readouterr().out
    assert "a mask of size [8, 8] for an image of [16, 24]" in said
    assert "masks       4:" in said
    assert "1 PNGs hold several numbers: all that is not 0 is taken for the one object" in said


def test_encoded_masks_are_what_the_png_shows(tmp_path: Path) -> None:
    expected_HW = np.zeros((SIZE[1], SIZE[0]), bool)
    expected_HW[:, :4] = True
    assert read_mask(mask(tmp_path / "m.png")) == encode(expected_HW)
