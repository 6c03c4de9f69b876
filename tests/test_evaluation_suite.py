"""The runner and the suite with a predictor that reads the answer off the question: resume, bad images, what is written."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from asking import RAW, Fake, ask_here, run_suite
from perceptio_core.evaluation.benchmarks.benchmark import Item
from perceptio_core.params.evaluate import BenchmarkParams, EvaluateParams


def pictures(folder: Path, count: int) -> list[Item]:
    folder.mkdir(exist_ok=True)
    items = []
    for i in range(count):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(folder / f"{i}.png")
        items.append(Item(item_id=str(i), image=folder / f"{i}.png", question=f"q{i}", expected="B"))
    return items


def run(items: Sequence[Item], predict: Any, journal: Path) -> Any:
    return ask_here(items, predict, journal=journal, batch_size=3, max_new_tokens=4, max_pixels=1000)


def test_a_killed_run_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    items, journal = pictures(tmp_path / "i", 10), tmp_path / "j.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(items, Fake(lives=2), journal)
    assert len(journal.read_text().splitlines()) == 6
    # The kill tore the last line: its whole batch is asked again.
    journal.write_bytes(journal.read_bytes()[:-9])
    again = Fake()
    answers = run(items, again, journal)
    assert again.calls == [["q3", "q4", "q5"], ["q6", "q7", "q8"], ["q9"]]
    assert [answer.item_id for answer in answers] == [str(i) for i in range(10)]
    assert answers == run(items, Fake(), tmp_path / "fresh.jsonl")
    nothing = Fake()
    assert run(items, nothing, journal) == answers
    assert nothing.calls == []


def test_raw_and_stripped_text_are_both_kept(tmp_path: Path) -> None:
    (answer,) = run(pictures(tmp_path / "i", 1), Fake(), tmp_path / "j.jsonl")
    assert answer.raw == f"{RAW} B"
    assert answer.text == "B"
    assert answer.depth_codes == (3, 0)
    assert answer.masks[0]["size"] == [6, 8]


def test_a_bad_image_is_one_answer_with_a_reason(tmp_path: Path) -> None:
    items = pictures(tmp_path / "i", 5)
    (tmp_path / "i/0.png").write_bytes(b"no image")
    (tmp_path / "i/1.png").unlink()
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "i/2.png")
    whole = (tmp_path / "i/2.png").read_bytes()
    (tmp_path / "i/2.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (40, 40)).save(tmp_path / "i/3.png")  # 1600 pixels, 1000 are allowed
    answers = run(items, Fake(), tmp_path / "j.jsonl")
    errors = [answer.error or "" for answer in answers]
    assert errors[0] == "0.png: no picture; allowed are JPEG, PNG, WEBP, GIF, BMP, TIFF"
    assert errors[1] == "1.png: No such file or directory"
    assert errors[2].startswith("2.png: damaged or cut off: image file is truncated")
    assert errors[3] == "3.png: 40 x 40 pixels, at most 1000 are allowed"
    assert errors[4] == ""
    assert answers == run(items, Fake(), tmp_path / "j.jsonl")


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    (item,) = pictures(tmp_path / "i", 1)
    turned = dataclasses.replace(item, truth={"size": [8, 6], "counts": ""})
    (answer,) = run([turned], Fake(), tmp_path / "j.jsonl")
    assert "annotated [8, 6]" in (answer.error or "")


def write_seed(root: Path) -> None:
    (root / "seed/SEED-Bench-image").mkdir(parents=True)
    rows = []
    for i in range(4):
        Image.new("RGB", (8, 6), (i, i, i)).save(root / f"seed/SEED-Bench-image/{i}.png")
        choices = {f"choice_{letter}": f"{letter}{letter}" for letter in "abcd"}
        row = {"answer": "BACB"[i], "data_id": str(i), "data_type": "image", "question": "?", "question_id": str(i)}
        rows.append({**row, **choices, "question_type_id": 1})
    (root / "seed/SEED-Bench.json").write_text(json.dumps({"questions": rows, "question_type": {"Scene": 1}}))


PARAMS: dict[str, Any] = {
    "batch_size": 2,
    "max_new_tokens": 4,
    "bootstrap_samples": 50,
    "benchmarks": [{"kind": "seedbench", "path": "seed/SEED-Bench.json", "panels": 2, "except_variants": ["other"]}],
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_suite_writes_everything(tmp_path: Path) -> None:
    write_seed(tmp_path)
    (tmp_path / "seed/SEED-Bench-image/3.png").unlink()  # its right answer B does not count
    params = EvaluateParams.from_mapping(PARAMS, where="test")
    (tmp_path / "j").mkdir()

    def once(name: str) -> list[Any]:
        return run_suite(params, root=tmp_path, out=name)

    metrics = {metric.name: metric for metric in once("out")}
    assert metrics["seed_image"].value == 25.0
    assert metrics["unparsed"].value == 25.0
    assert metrics["unparsed"].protocol.startswith("1 of 4")
    assert (metrics["decode_passes"].value, metrics["decode_passes"].n) == (3.0, 3), "not of the picture that is missing"
    rows = read(tmp_path / "out/predictions/seedbench.jsonl")
    assert [(row["item_id"], row["text"], row["expected"], row["correct"]) for row in rows] == [
        ("0", "B", "B", 1.0),
        ("1", "B", "A", 0.0),
        ("2", "B", "C", 0.0),
        ("3", "", "B", 0.0),
    ]
    assert rows[0]["raw"] == f"{RAW} B"
    (bad,) = read(tmp_path / "out/quarantine.jsonl")
    assert set(bad) == {"file", "reason"}
    assert "seed/SEED-Bench.json: 3" in bad["file"]
    panels = read(tmp_path / "out/panels.jsonl")
    assert [panel["image"] for panel in panels] == ["seed/SEED-Bench-image/0.png", "seed/SEED-Bench-image/1.png"]
    assert panels[0]["depth_codes"] == [3, 0]
    assert panels[0]["mask"]["size"] == [6, 8]
    assert [row["name"] for row in read(tmp_path / "out/breakdown.jsonl")] == [
        "seed_image/vlmevalkit",
        "seed_image/vlmevalkit_main",
        "seed_image/Scene",
    ]
    once("again")
    for file in ("predictions/seedbench.jsonl", "panels.jsonl", "breakdown.jsonl", "quarantine.jsonl"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    assert run_suite(params, root=tmp_path, out="o", variant="other") == []


def test_a_control_gets_other_codes_and_one_line_of_its_own(tmp_path: Path) -> None:
    write_seed(tmp_path)
    (tmp_path / "j").mkdir()
    plain = {"kind": "seedbench", "path": "seed/SEED-Bench.json"}
    entries = [plain, {**plain, "name": "codes_other", "codes": "other"}, {**plain, "name": "bare", "depth": False}]
    params = EvaluateParams.from_mapping({**PARAMS, "benchmarks": entries}, where="test")
    fake = Fake()
    metrics = {metric.name: metric for metric in run_suite(params, root=tmp_path, out="out", predict=fake)}
    assert [name for name in metrics if not name.startswith("seed_image_")] == [
        *("seed_image", "codes_other_seed_image", "bare_seed_image", "unparsed", "decode_passes"),
    ]
    assert metrics["seed_image_majority"].value == 50.0
    assert "other depth codes in place of the model's own" in metrics["codes_other_seed_image"].protocol
    assert "no depth span" in metrics["bare_seed_image"].protocol
    assert metrics["unparsed"].n == metrics["decode_passes"].n == 4, "controls do not count"
    assert [(options["depth"], options.get("depth_codes")) for options in fake.options[:2]] == [(None, None)] * 2
    assert [options["depth"] for options in fake.options[2:]] == [True, True, False, False]
    # each picture is grey by its number; the next one's number is what its codes say
    assert [options["depth_codes"].tolist() for options in fake.options[2:4]] == [[[1, 1], [2, 2]], [[3, 3], [0, 0]]]
    names = {path.name for path in (tmp_path / "out/predictions").iterdir()}
    assert names == {"seedbench.jsonl", "codes_other_seedbench.jsonl", "bare_seedbench.jsonl"}


def test_what_the_text_alone_gives_is_asked_with_a_gray_picture(tmp_path: Path) -> None:
    write_seed(tmp_path)
    (tmp_path / "j").mkdir()
    plain = {"kind": "seedbench", "path": "seed/SEED-Bench.json"}
    entries = [plain, {**plain, "name": "blind", "picture": "gray"}]
    params = EvaluateParams.from_mapping({**PARAMS, "benchmarks": entries}, where="test")
    shown: list[tuple[tuple[int, int], object]] = []

    def looking(images: list[Image.Image], questions: list[str], **options: Any) -> list[Any]:
        shown.extend((image.size, image.getpixel((3, 2))) for image in images)
        return Fake()(images, questions, **options)

    metrics = {metric.name: metric for metric in run_suite(params, root=tmp_path, out="out", predict=looking)}
    assert shown == [((8, 6), (i, i, i)) for i in range(4)] + [((8, 6), (128, 128, 128))] * 4
    assert "a gray picture in place of the question's own" in metrics["blind_seed_image"].protocol
    with pytest.raises(ValueError, match="picture: gray is a control: it needs a name"):
        EvaluateParams.from_mapping({**PARAMS, "benchmarks": [{**plain, "picture": "gray"}]}, where="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["benchmarks"][0].update(kind="pope"), "kind"),
        (lambda p: p["benchmarks"][0].update(path="../x"), "below the data root"),
        (lambda p: p["benchmarks"][0].update(path="/x"), "below the data root"),
        (
            lambda p: p["benchmarks"][0].update(split="val"),
            "split is allowed for refer, grefcoco, mmbench, scienceqa, hardblink only",
        ),
        (lambda p: p["benchmarks"][0].update(kind="refer"), "split is required"),
        (lambda p: p["benchmarks"][0].update(kind="grefcoco"), "split is required"),
        (lambda p: p["benchmarks"][0].update(kind="hardblink", split="6"), '"3", "4" or "5"'),
        (lambda p: p["benchmarks"][0].update(images="x"), "refer, grefcoco, questions and masks only"),
        (lambda p: p["benchmarks"][0].update(split_by="umd"), "refer only"),
        (lambda p: p["benchmarks"].append(dict(p["benchmarks"][0])), "same name: seedbench"),
        (lambda p: p["benchmarks"][0].update(codes="random"), "needs a name"),
        (lambda p: p["benchmarks"][0].update(codes="random", name="x", depth=False), "not allowed with depth: false"),
        (lambda p: p["benchmarks"][0].update(codes="shuffled", name="x"), "codes"),
        (lambda p: p.update(batchsize=3), "unknown key"),
        (lambda p: p.update(batch_size="3"), "batch_size"),
    ],
)
def test_parameters_refuse(change: Callable[[dict[str, Any]], None], message: str) -> None:
    values = json.loads(json.dumps(PARAMS))
    change(values)
    with pytest.raises(ValueError, match=message):
        EvaluateParams.from_mapping(values, where="test")


def test_referring_sets_may_stand_side_by_side() -> None:
    one = {"kind": "refer", "path": "refcoco", "split": "val"}
    two = {"kind": "refer", "path": "refcocog", "split": "val", "name": "refcocog"}
    params = EvaluateParams.from_mapping({**PARAMS, "benchmarks": [one, two]}, where="test")
    assert [entry.label for entry in params.benchmarks] == ["res", "refcocog"]


def test_a_benchmark_may_leave_out_variants_by_a_pattern():
    entry = BenchmarkParams(kind="mme", path="mme", except_variants=("*control*", "no_seg"))
    variants = ("full", "control", "labels_100_control", "no_seg", "no_seg_s1")
    assert [entry.is_for(variant) for variant in variants] == [True, False, False, False, True]
