"""What is exported is read again and scores the same; and it is what the benchmarks' own tools expect to find."""

import json
from dataclasses import replace
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from PIL import Image

from asking import run_suite
from official_files import (
    gref_columns,
    reason_mask,
    refer_mask,
    small_benchmark,
    write_mme,
)
from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item
from perceptio_core.evaluation.interchange.export import export
from perceptio_core.evaluation.interchange.predictions import read_predictions
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.params.evaluate import EvaluateParams
from pipeline.cli import main

BOOTSTRAP = Bootstrap(samples=50)


TEXTS = ["Yes", "(A)", 'A "quoted"\tanswer\nin two lines', "=1+1", "B, \x07 certainly", "", "the answer is C", "no"]
MASKS = {"refer": refer_mask(0, 3, 10, 12), "grefcoco": gref_columns(3, 12), "reasonseg": reason_mask(2, 2, 12, 9)}
KINDS = (
    "mme",
    "mme_xlsx",
    "mmbench_xlsx",
    "mmbench_tsv",
    "ai2d",
    "seed_table",
    "seed",
    "scienceqa",
    "hardblink",
    "blink",
    *MASKS,
)


def said(kind: str, items: list[Item]) -> dict[str, Answer]:
    answers = {}
    for number, item in enumerate(items):
        masks = (encode(MASKS[kind]),) * (number % 3) if kind in MASKS else ()
        text = "" if kind in MASKS else TEXTS[number % len(TEXTS)]
        answers[item.item_id] = Answer(item_id=item.item_id, raw=f"[SEG] {text}", text=text, masks=masks)
    return answers


@pytest.mark.parametrize("kind", KINDS)
def test_exported_and_read_again_it_scores_the_same(tmp_path: Path, kind: str) -> None:
    benchmark, name = small_benchmark(kind, tmp_path)
    answers = said(kind, list(benchmark.items))
    export(benchmark, answers, tmp_path / "exports" / name)
    again = read_predictions(tmp_path / "exports" / name, benchmark)
    before, after = (benchmark.score(given, bootstrap=BOOTSTRAP) for given in (answers, again))
    assert before == after
    assert {key: answer.masks for key, answer in again.items()} == {key: answer.masks for key, answer in answers.items()}
    with pytest.raises(ValueError, match="exists already"):
        export(benchmark, answers, tmp_path / "exports" / name)
    with pytest.raises(ValueError, match="are written as"):
        export(benchmark, answers, tmp_path / "exports/out.csv")


def test_mme_lines_are_those_of_the_official_tool(tmp_path: Path) -> None:
    benchmark, _ = small_benchmark("mme", tmp_path)
    answers = said("mme", list(benchmark.items))
    first = benchmark.items[0].item_id
    answers[first] = replace(answers[first], text="  Yes,\tit\nis")
    export(benchmark, answers, tmp_path / "out")
    assert read_predictions(tmp_path / "out", benchmark)[first].text == "  Yes, it is"  # the blanks count there
    for file in (tmp_path / "out").glob("*.txt"):
        for line in file.read_text().splitlines():
            image, question, truth, _ = line.split("\t")  # as calculation.py takes it apart
            assert (image[1:], question[:5], truth in ("Yes", "No")) == (".jpg", "Is it", True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"count.txt", "OCR.txt"}


def test_the_workbook_has_text_where_text_is_meant(tmp_path: Path) -> None:
    benchmark, _ = small_benchmark("mmbench_xlsx", tmp_path)
    answers = {item.item_id: Answer(item_id=item.item_id, raw="", text="=1+1") for item in benchmark.items}
    export(benchmark, answers, tmp_path / "model_MMBench_DEV_EN.xlsx")
    rows = list(openpyxl.load_workbook(tmp_path / "model_MMBench_DEV_EN.xlsx").active.iter_rows())
    header = [cell.value for cell in rows[0]]
    assert "image" not in header
    assert header[-1] == "prediction"
    assert (rows[1][-1].value, rows[1][-1].data_type) == ("=1+1", "s")
    table = pd.read_excel(tmp_path / "model_MMBench_DEV_EN.xlsx")  # as VLMEvalKit loads it
    assert sorted(table["index"]) == [1, 2, 1000001, 1000002, 2000002]
    assert list(table.columns[:2]) == ["index", "question"]


def test_every_kind_passes_through_the_suite(tmp_path: Path) -> None:
    """Asked, scored and written, with a predictor that says B and masks the left half."""
    for kind in ("grefcoco", "reasonseg", "ai2d", "scienceqa", "blink"):
        small_benchmark(kind, tmp_path)
    images = tmp_path / "g/images/mscoco/images/train2014"
    images.mkdir(parents=True)
    Image.new("RGB", (40, 10)).save(images / "COCO_train2014_000000000007.jpg")
    entries = [
        {"kind": "grefcoco", "path": "g", "split": "val"},
        {"kind": "grefcoco", "path": "g", "split": "testA", "name": "grefcoco_testa"},
        {"kind": "reasonseg", "path": "val"},
        {"kind": "ai2d", "path": "a.tsv"},
        {"kind": "scienceqa", "path": "sqa", "split": "test"},
        {"kind": "blink_depth", "path": "val-0.parquet"},
    ]
    values = {"batch_size": 2, "max_new_tokens": 4, "bootstrap_samples": 20, "benchmarks": entries}
    params = EvaluateParams.from_mapping(values, where="test")
    (tmp_path / "j").mkdir()
    metrics = run_suite(params, root=tmp_path, out="out")
    assert [metric.name for metric in metrics] == [
        *("grefcoco_ciou", "grefcoco_giou", "grefcoco_n_acc", "grefcoco_t_acc"),
        *("grefcoco_testa_ciou", "grefcoco_testa_giou", "grefcoco_testa_t_acc"),
        *("reasonseg_giou", "reasonseg_ciou"),
        *(name + more for name in ("ai2d", "scienceqa_image", "blink_depth") for more in ("", "_majority", "_longest")),
        *("unparsed", "decode_passes"),
    ]
    values_by_name = {metric.name: metric.value for metric in metrics}
    assert values_by_name["grefcoco_ciou"] == pytest.approx(100 * (200 + 0 + 100) / (200 + 300 + 2 * 200 + 200))
    right = (values_by_name["ai2d"], values_by_name["blink_depth"], values_by_name["scienceqa_image"])
    assert right == pytest.approx((100 / 3, 200 / 3, 0.0))  # B is right once, twice and never
    names = {path.name for path in (tmp_path / "out/predictions").iterdir()}
    assert {"grefcoco.jsonl", "grefcoco_testa.jsonl", "reasonseg.jsonl", "blink_depth.jsonl"} <= names


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_mme(tmp_path / "mme", {"count": ["a.jpg"]})
    rows = [
        {"item_id": f"count/{i}", "raw": f"[SEG] {text}", "text": text, "masks": []} for i, text in ((1, "Yes"), (2, "Yes"))
    ]
    (tmp_path / "mme.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["mme", "--predictions", str(tmp_path / "mme.jsonl"), "--root", str(tmp_path), str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["perceptio", "export", *arguments])
    main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert (tmp_path / "out/count.txt").read_text() == "a.jpg\tIs it x?\tYes\tYes\na.jpg\tIs it y?\tNo\tYes\n"
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "exists already" in capsys.readouterr().err
