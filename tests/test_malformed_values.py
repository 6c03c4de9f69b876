"""One malformed value costs one record and says so; of a benchmark it is refused by file, row and key; marks are no matter."""

import csv
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import perceptio_core.data.readers.json_rows as rows_module
from collecting import collected
from official_files import write_hardblink, write_scienceqa, write_seed
from perceptio_core.data.readers.json_rows import key_rows, list_rows
from perceptio_core.data.readers.kinds import read_dataset
from perceptio_core.data.records import Record, Refused
from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.blink import BlinkDepth
from perceptio_core.evaluation.benchmarks.grefcoco import GeneralisedReferring
from perceptio_core.evaluation.benchmarks.hardblink import HardBlink
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.mme import MME
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.evaluation.benchmarks.scienceqa import ScienceQA
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.params.sources import DatasetParams

NAN = math.nan
BOM = "\ufeff"
TEXTS = (None, 5, NAN, True, "", "  ", [], {})
"""What is no text."""
NUMBERS = (None, "5", NAN, 1.5, True, [], {}, 1 << 70)
"""What is no whole number."""


def read(root: Path, kind: Any, path: str, **how: Any) -> tuple[list[Record], list[Refused]]:
    found = list(read_dataset(DatasetParams(name="x", kind=kind, path=path, split="train", **how), root=root))
    return [row for row in found if isinstance(row, Record)], [row for row in found if isinstance(row, Refused)]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    made = json.loads(json.dumps(content))
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return made


def instances(second: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two images with one object each, of two kinds."""
    numbers = (1, 2)
    return {
        "images": [{"id": n, "height": 10, "width": 20, "file_name": f"{n}.jpg"} for n in numbers],
        "annotations": [
            {"id": 10 * n, "image_id": n, "category_id": n, "area": 1.0, "segmentation": [[0, 0, 5, 0, 5, 5]]} for n in numbers
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    } | (second or {})


REFS = [
    {"ref_id": n, "image_id": n, "ann_id": 10 * n, "split": "train", "sentences": [{"sent_id": n, "sent": f"thing {n}"}]}
    for n in (1, 2)
]
SENTENCE = (1, "sentences", 0)


def write_referring(folder: Path, refs: Any, about: Any) -> None:
    folder.mkdir(exist_ok=True)
    listed = [{**ref, "ann_id": [ref["ann_id"]]} if isinstance(ref, dict) and "ann_id" in ref else ref for ref in refs]
    (folder / "grefs(unc).json").write_text(BOM + json.dumps(listed), encoding="utf-8")
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(BOM + json.dumps(about), encoding="utf-8")


REFERRING = [
    *(((*SENTENCE, "sent"), value) for value in TEXTS),
    *(((*SENTENCE, "sent_id"), value) for value in NUMBERS),
    *(((1, key), value) for key in ("ref_id", "image_id") for value in NUMBERS),
    *(((1, "ann_id"), value) for value in (None, "5", NAN, 99)),
    *(((1, "split"), value) for value in (None, 5)),
    *(((1, "sentences"), value) for value in (None, "x", {})),
    ((1,), None),
]


@pytest.mark.parametrize(("path", "value"), REFERRING)
def test_a_reference_with_a_value_that_does_not_belong(tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    write_referring(tmp_path / "g", changed(REFS, path, value), instances())
    for kind in ("refer", "grefer"):
        records, refused = read(tmp_path, kind, "g")
        assert [record.expression for record in records] == ["thing 1"], kind
        assert [row.file for row in refused] == [f"g/{'refs(unc).p' if kind == 'refer' else 'grefs(unc).json'}#1"]
        assert str(tmp_path) not in refused[0].reason.replace(f"{tmp_path}/g/instances.json", "")
    if value in ("", "  "):
        return  # asked as it stands: the official files decide what is counted
    for benchmark, file in ((ReferringSegmentation, "refs"), (GeneralisedReferring, "grefs")):
        with pytest.raises(ValueError, match=rf"{file}\(unc\)"):
            benchmark(tmp_path / "g", split="train")


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (("images", 1, "height"), NUMBERS),
        (("images", 1, "file_name"), TEXTS),
        (("images", 1, "id"), NUMBERS),
        (("annotations", 1, "id"), NUMBERS),
        (("annotations", 1, "image_id"), NUMBERS),
        (("annotations", 1, "category_id"), NUMBERS),
        (
            ("annotations", 1, "segmentation"),
            (None, 5, [[1, 2, 3, 4]], [[0, 0, NAN, 0, 5, 5]]),
        ),  # four: cocodataset/cocoapi#348
        (("categories", 1, "name"), TEXTS),
        (("annotations", 1), (None, 5, [])),
    ],
)
def test_a_value_of_coco_that_does_not_belong(tmp_path: Path, path: tuple[Any, ...], values: tuple[Any, ...]) -> None:
    """KeyError: 'id' from pycocotools ends a run there (noahcao/animal-pose-dataset#2)."""
    for value in values:
        write_referring(tmp_path / "g", REFS, changed(instances(), path, value))
        records, refused = read(tmp_path, "coco", "g")
        assert [record.expression for record in records] == ["dog"], value
        assert refused, value
        assert all(row.file.startswith("g/instances.json") for row in refused)
        if path[0] != "categories" and path[-1] != "category_id" and path != ("annotations", 1, "image_id"):
            for kind in ("refer", "grefer"):
                records, refused = read(tmp_path, kind, "g")
                assert [record.expression for record in records] == ["thing 1"], value
                assert refused


def test_a_category_with_an_object_that_cannot_be_used_is_not_asked_for(tmp_path: Path) -> None:
    """Its record would teach that there are fewer."""
    about = instances()
    about["annotations"].append(about["annotations"][1] | {"id": None})
    write_referring(tmp_path / "g", REFS, about)
    records, refused = read(tmp_path, "coco", "g")
    assert [record.expression for record in records] == ["dog"]
    assert "and one more that cannot be used" in refused[-1].reason


def test_what_nobody_needs_may_be_anything(tmp_path: Path) -> None:
    for value in (NAN, math.inf, None, 1 << 70, "x"):
        write_referring(tmp_path / "g", REFS, changed(instances(), ("annotations", 1, "area"), value))
        for kind in ("refer", "grefer", "coco"):
            records, refused = read(tmp_path, kind, "g")
            assert (len(records), refused) == (2, []), (kind, value)


MASK = encode(np.ones((10, 20), bool))
SAID = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
CAPTION = {
    "file_name": "1.jpg",
    "caption": "a dog runs",
    "groundings": {"a dog": {"token_positives": [0, 5], "rle_masks": [MASK]}},
}
REGIONS = {"id": 1, "regions": [{"region_id": 1, "x": 0, "y": 0, "width": 5, "height": 5, "phrase": "a dog"}]}
ROWS: list[tuple[str, Any, tuple[Any, ...], tuple[Any, ...]]] = [
    ("llava", {"image": "a.png", "conversations": SAID}, ("image",), TEXTS[:4]),
    ("llava", {"image": "a.png", "conversations": SAID}, ("conversations", 0, "value"), TEXTS),
    ("llava", {"image": "a.png", "conversations": SAID}, ("conversations", 1, "value"), TEXTS),
    ("llava", {"image": "a.png", "conversations": SAID}, ("conversations",), (None, [], "x", 5)),
    ("aurora", {"image": "p/a.png", "conversations": [SAID[0], {"from": "gpt", "value": "(B)"}]}, ("image",), TEXTS[:4]),
    (
        "aurora",
        {"image": "p/a.png", "conversations": [SAID[0], {"from": "gpt", "value": "(B)"}]},
        ("conversations", 1, "value"),
        TEXTS,
    ),
    ("gcg", CAPTION, ("file_name",), TEXTS[:5]),
    ("gcg", CAPTION, ("caption",), TEXTS),
    ("gcg", CAPTION, ("groundings",), (None, [], {}, 5)),
    ("gcg", CAPTION, ("groundings", "a dog", "token_positives"), (None, [0], [0, "5"], [0, NAN], [0.5, 5], [0, 99])),
    ("gcg", CAPTION, ("groundings", "a dog", "rle_masks"), (None, [], [None], [NAN])),
    ("vg", REGIONS, ("id",), NUMBERS),
    ("vg", REGIONS, ("regions",), (None, "x", 5)),
    *(("vg", REGIONS, ("regions", 0, key), NUMBERS) for key in ("x", "y", "width", "height")),
    ("vg", REGIONS, ("regions", 0, "phrase"), TEXTS),
]


@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize(("kind", "row", "path", "values"), ROWS)
def test_a_row_with_a_value_that_does_not_belong(
    tmp_path: Path, kind: str, row: Any, path: tuple[Any, ...], values: tuple[Any, ...], mark: str
) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.png").touch()
    pictures = [{"image_id": n, "url": f"http://x/VG_100K/{n}.jpg", "width": 20, "height": 10} for n in (1, 2)]
    (tmp_path / "image_data.json").write_text(mark + json.dumps(pictures), encoding="utf-8")
    name = "region_descriptions.json" if kind == "vg" else "rows.json"
    good = {**row, "id": 2} if kind == "vg" else row
    if kind == "aurora":  # which takes what is said twice once
        good = {**row, "conversations": [{**SAID[0], "value": "Which?"}, row["conversations"][1]]}
    for value in values:
        (tmp_path / name).write_text(mark + json.dumps([changed(row, path, value), good]), encoding="utf-8")
        records, refused = read(tmp_path, kind, "." if kind == "vg" else name)
        assert len(records) == 1, value
        assert [row.file.partition("/")[0] for row in refused] == [f"{name}#0"], value
        assert len(refused[0].reason) < 300


def test_a_picture_of_visual_genome_without_a_size(tmp_path: Path) -> None:
    for key, values in (("image_id", NUMBERS), ("width", NUMBERS), ("url", TEXTS)):
        for value in values:
            pictures = [{"image_id": n, "url": f"http://x/VG_100K/{n}.jpg", "width": 20, "height": 10} for n in (1, 2)]
            pictures[0][key] = value  # type: ignore[assignment]
            (tmp_path / "image_data.json").write_text(json.dumps(pictures))
            (tmp_path / "region_descriptions.json").write_text(json.dumps([REGIONS, {**REGIONS, "id": 2}]))
            records, refused = read(tmp_path, "vg", ".")
            assert [record.record_id for record in records] == ["x/2"]
            assert [row.file for row in refused] == ["image_data.json#0", "region_descriptions.json#0"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".CSV"])
def test_tables_with_marks_and_values_that_do_not_belong(tmp_path: Path, suffix: str) -> None:
    good = {"image": "a.png", "question": "What?", "answer": "A dog."}
    path = tmp_path / f"table{suffix}"
    for key in good:
        bad = (
            [None, ""]
            if suffix.lower() in (".csv", ".parquet")
            else [value for value in TEXTS if value != "  " or key != "image"]
        )
        table = [{**good, key: value} for value in bad] + [good]
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(table), path)
        elif suffix == ".jsonl":
            path.write_text(BOM + "".join(json.dumps(row) + "\n\n" for row in table), encoding="utf-8")
        else:
            with path.open("w", newline="", encoding="utf-8-sig") as stream:
                writer = csv.DictWriter(stream, list(good))
                writer.writeheader()
                writer.writerows(table)
        records, refused = read(tmp_path, "questions", path.name)
        assert len(records) == 1
        assert [row.file for row in refused] == [f"{path.name}#{number}" for number in range(len(bad))]


def test_a_table_as_the_hub_serves_it_is_refused_in_a_line(tmp_path: Path) -> None:
    for image in ({"bytes": b"x" * 10**6, "path": "a.jpg"}, b"x" * 10**6):
        pq.write_table(pa.Table.from_pylist([{"image": image, "question": "q", "answer": "a"}]), tmp_path / "t.parquet")
        with pytest.raises(
            ValueError, match=r"t\.parquet: its column image holds the pictures themselves; allowed are"
        ) as caught:
            read(tmp_path, "questions", "t.parquet")
        assert len(str(caught.value)) < 400


def test_label_maps(tmp_path: Path) -> None:
    """Bad rows of panoptic's JSON cost their images; a label picture whose colours are a palette's is no label picture."""
    (tmp_path / "p").mkdir()
    labels = np.zeros((10, 20, 3), np.uint8)
    labels[:5, :, 0] = 7
    for n in (1, 2):
        Image.fromarray(labels).save(tmp_path / f"p/{n}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": n, "file_name": f"{n}.png", "segments_info": [{"id": 7, "category_id": n}]} for n in (1, 2)
        ],
    }
    for path, values in (
        (("images", 1, "id"), NUMBERS),
        (("images", 1, "file_name"), TEXTS),
        (("categories", 1, "name"), TEXTS),
        (("annotations", 1, "file_name"), TEXTS[:5]),
        (("annotations", 1, "segments_info"), (None, 5, [None])),
    ):
        for value in values:
            (tmp_path / "p.json").write_text(BOM + json.dumps(changed(content, path, value)), encoding="utf-8")
            records, refused = read(tmp_path, "panoptic", "p.json")
            assert [record.expression for record in records] == ["dog"], (path, value)
            assert refused
    (tmp_path / "p.json").write_text(json.dumps(content))
    Image.fromarray(labels).convert("P").save(tmp_path / "p/2.png")
    records, (refused_one,) = read(tmp_path, "panoptic", "p.json")
    assert refused_one.reason == "p/2.png: a label picture of mode P; allowed is RGB"


def test_ids_that_stand_twice_are_found_before_a_picture_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_referring(tmp_path / "g", [REFS[0], REFS[0]], instances())
    monkeypatch.setattr("perceptio_core.data.manifest.collect.inspect_image", None)
    dataset = DatasetParams(name="x", kind="refer", path="g", split="train")
    with pytest.raises(ValueError, match=r"g: two records have the id x/1/1; it must stand for one"):
        collected([dataset], root=tmp_path, work=tmp_path / "w")


@pytest.mark.parametrize("size", [1 << 16, 7, 64])
def test_what_python_writes_and_json_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """NaN and its like become null, wherever a file is cut; what strings say of them stays."""
    monkeypatch.setattr(rows_module, "_AT_ONCE", size)
    said = ["NaN, -Infinity", '\\" NaN ,', "\\", "12345678901234567890", "ünï\u2028"]
    rows = [
        1.5,
        *said,
        {"NaN": [NAN, -math.inf, 1 << 63, 1 - (1 << 63), (1 << 63) - 1, 10**30, 1e300], "x": said},
        math.inf,
        None,
    ]
    expected = [*rows[:6], {"NaN": [None, None, None, 1 - (1 << 63), (1 << 63) - 1, None, 1e300], "x": said}, None, None]
    for mark in ("", BOM):
        for ascii_only in (True, False):
            path = tmp_path / "x.json"
            path.write_text(mark + json.dumps(rows, ensure_ascii=ascii_only), encoding="utf-8")
            assert list(list_rows(path, of="values")) == expected
            path.write_text(mark + json.dumps({"n": NAN, "rows": rows, "none": []}, ensure_ascii=ascii_only), encoding="utf-8")
            assert list(key_rows(path, "rows")) == expected
            assert list(key_rows(path, "none")) == []
    for broken in ("[nan]", "[1, NaNa]", "[NaN", '[NaN, "'):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"x\.json: not JSON"):
            list(list_rows(path, of="values"))


def replaced(file: Path, change: Callable[[Any], None], *, lines: bool = False) -> None:
    text = file.read_text(encoding="utf-8-sig")
    content = [json.loads(line) for line in text.split("\n") if line] if lines else json.loads(text)
    change(content)
    made = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
    file.write_text(BOM + made, encoding="utf-8")


UNTEXT = (None, NAN, True, "", [], {})


def test_benchmarks_of_json_are_read_with_a_mark_and_refuse_by_file_row_and_key(tmp_path: Path) -> None:
    for value in UNTEXT:
        for key in ("question", "choice_a", "data_id", "question_id", "question_type_id"):
            file = write_seed(tmp_path / "seed")
            replaced(file, lambda _: None)
            count = len(SeedImage(file).items)
            assert count
            replaced(file, lambda content: content["questions"][0].update({key: value}))  # noqa: B023
            with pytest.raises(ValueError, match=rf"SEED-Bench\.json: .*{key} must be a"):
                SeedImage(file)
        folder = write_scienceqa(tmp_path / "science")
        for key in ("question", "choices", "hint"):
            write_scienceqa(folder)
            replaced(folder / "problems.json", lambda _: None)
            assert ScienceQA(folder).items
            asked = ScienceQA(folder).items[0].item_id
            wrong = [value, "x", "y"] if key == "choices" else value
            replaced(folder / "problems.json", lambda content: content[asked].update({key: wrong}))  # noqa: B023
            if key == "hint" and not value:
                continue  # most questions have none
            with pytest.raises(ValueError, match=rf"problems\.json: question {asked}: {key.removesuffix('s')}.* must be"):
                ScienceQA(folder)
        for part, key in (("questions", "text"), ("questions", "question_id"), ("answers", "text")):
            folder = write_hardblink(tmp_path / "hard", markers=False)
            file = folder / f"{part}/blink_3pointscenter_{part}.jsonl"
            replaced(file, lambda _: None, lines=True)
            assert HardBlink(folder).items
            replaced(file, lambda rows: rows[0].update({key: value}), lines=True)  # noqa: B023
            with pytest.raises(ValueError, match=rf"{file.name}: "):
                HardBlink(folder)
            write_hardblink(folder, markers=False)


def test_a_row_of_a_table_that_is_too_short_or_too_long(tmp_path: Path) -> None:
    """Pandas fills the one and cuts the other (or takes the first column for an index) without a word."""
    file = tmp_path / "MMBench_X.tsv"
    head = "index\tquestion\tA\tB\tanswer\timage\tcomment\n"
    good = f'1\tWhat?\tx\t"y\n\t""z"""\tA\t{"QUJD" * 20}\tNaN\n'
    file.write_text(BOM + head + good, encoding="utf-8")
    (row,) = MMBench(file).rows
    assert (row.item.item_id, row.choices["B"], row.field("comment")) == ("1", 'y\n\t"z"', "NaN")
    for bad in ("2\tWhat?\tx\n", f"2{good[1:-5]}\n", f"2{good[1:-1]}\tz\n"):
        file.write_text(head + good + bad)
        with pytest.raises(ValueError, match=r"MMBench_X\.tsv: .* row 2 \(index '2'\) has more or fewer columns"):
            MMBench(file)


def test_mme_blink_and_reason_seg(tmp_path: Path) -> None:
    (tmp_path / "mme/questions").mkdir(parents=True)
    (tmp_path / "mme/questions/OCR.txt").write_text("a.png\t \tYes\na.png\tIs it?\tNo\n")
    with pytest.raises(ValueError, match=r"OCR\.txt:1: expected image TAB question"):
        MME(tmp_path / "mme")
    row = {
        "idx": "v1",
        "sub_task": "Relative_Depth",
        "image_1": {"bytes": b"x"},
        "choices": ["A", "B"],
        "answer": "(A)",
        "prompt": "?",
    }
    for key, value in (("prompt", None), ("choices", ["A", None]), ("idx", None), ("image_1", "a.png"), ("image_1", None)):
        pq.write_table(pa.Table.from_pylist([row | {key: value}]), tmp_path / "val-0.parquet")
        with pytest.raises(ValueError, match=rf"val-0\.parquet: .*{key.removesuffix('s')}"):
            BlinkDepth(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    pair = {"text": ["x"], "is_sentence": False, "shapes": []}
    (tmp_path / "a.json").write_text(BOM + json.dumps(pair), encoding="utf-8")
    assert len(ReasonSeg(tmp_path).items) == 1
    for change in ({"is_sentence": None}, {"text": [None]}, {"shapes": [{"label": None, "points": []}]}):
        (tmp_path / "a.json").write_text(json.dumps(pair | change))
        with pytest.raises(ValueError, match=r"a\.json: "):
            ReasonSeg(tmp_path)
