"""Every form of predictions file read, scored by `perceptio score`, and refused where it is not what it should be."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from official_files import (
    mmbench_rows,
    polygon,
    reason_mask,
    refer_mask,
    table_rows,
    write_blink,
    write_hardblink,
    write_mmbench,
    write_mme,
    write_pair,
    write_refer,
    write_scienceqa,
    write_seed,
    write_tsv,
)
from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.ai2d import AI2D
from perceptio_core.evaluation.benchmarks.blink import BlinkDepth
from perceptio_core.evaluation.benchmarks.catalogue import CATALOGUE, official
from perceptio_core.evaluation.benchmarks.hardblink import HardBlink
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.mme import COGNITION, PERCEPTION
from perceptio_core.evaluation.benchmarks.reason_seg import ReasonSeg
from perceptio_core.evaluation.benchmarks.res import ReferringSegmentation
from perceptio_core.evaluation.benchmarks.scienceqa import ScienceQA
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.evaluation.interchange.predictions import read_predictions
from pipeline.cli import main

SPANS = "[SEG]<depth_start><depth_3><depth_0><depth_end>"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, dict[str, Any]]:
    """`perceptio score ... --json`: the metrics by name."""
    monkeypatch.setattr("sys.argv", ["perceptio", "score", *map(str, arguments), "--json"])
    main()
    rows = json.loads(capsys.readouterr().out)
    assert all(set(row) == {"name", "value", "low", "high", "n", "chance", "protocol"} for row in rows)
    return {row["name"]: row for row in rows}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr("sys.argv", ["perceptio", "score", *map(str, arguments)])
    with pytest.raises(SystemExit, match="2"):
        main()
    return capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- MME


def results_folder(folder: Path, questions: Path, answer: Any) -> Path:
    folder.mkdir()
    for file in questions.glob("*.txt"):
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        said = [f"{line}\t{answer(file.stem, number, line)}" for number, line in enumerate(lines)]
        (folder / file.name).write_text("\n".join(said) + "\n", encoding="utf-8")
    return folder


def test_mme_folder_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_mme(tmp_path / "data/mme", {"count": ["a.jpg", "b.jpg"], "code_reasoning": ["c.jpg"]})
    said = ["Yes", "No, it is not.", f"{SPANS} yes", "Yes", "The answer is yes", "No"]
    results = tmp_path / "results"
    results.mkdir()
    for file, answers in (("count", said[:4]), ("code_reasoning", said[4:])):
        lines = (folder / f"questions/{file}.txt").read_text().splitlines()
        (results / f"{file}.txt").write_text("".join(f"{line}\t{a}\n" for line, a in zip(lines, answers, strict=True)))
    metrics = run(monkeypatch, capsys, "mme", "--predictions", results)
    # count: right right | right wrong -> acc 3/4, acc+ 1/2. code: other right -> acc 1/2, acc+ 0.
    assert metrics["mme_perception"]["value"] == 125.0
    assert metrics["mme_cognition"]["value"] == 50.0
    assert metrics["mme_cognition/vlmevalkit"]["value"] == 200.0  # it finds the word in "The answer is yes"
    assert metrics["mme_perception/lmms_eval"]["value"] == 125.0
    assert metrics["unparsed"]["protocol"].startswith("1 of 6")
    assert "1 of 10 subtasks" in metrics["mme_perception"]["protocol"]
    # Against the official questions, in any order of the pictures, the score is the same.
    lines = (results / "count.txt").read_text().splitlines()
    (results / "count.txt").write_text("\n".join([*lines[2:], *lines[:2]]) + "\n")
    again = run(monkeypatch, capsys, "mme", "--predictions", results, "--root", tmp_path / "data")
    assert again["mme_perception"]["value"] == 125.0


def test_the_official_reading_counts_blanks_and_windows_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_mme(tmp_path / "mme", {"count": ["a.jpg"]})
    lines = (folder / "questions/count.txt").read_text().splitlines()
    (tmp_path / "r").mkdir()
    said = f"{lines[0]}\t  Yes\r\n{lines[1]}\t No\r\n"
    (tmp_path / "r/count.txt").write_bytes(b"\xef\xbb\xbf" + said.encode())  # as Windows' editor saves it
    metrics = run(monkeypatch, capsys, "mme", "--predictions", tmp_path / "r", "--root", tmp_path)
    assert metrics["mme_perception"]["value"] == 50.0  # of "  Yes" it reads "  ye"
    assert metrics["mme_perception/lmms_eval"]["value"] == 200.0


def test_mme_folder_without_answers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_mme(tmp_path / "mme", {"count": ["a.jpg"]})
    error = refused(monkeypatch, capsys, "mme", "--predictions", folder / "questions")
    assert "count.txt:1: no prediction" in error
    results = results_folder(tmp_path / "r", folder / "questions", lambda *_: "Yes")
    (results / "count.txt").write_text((results / "count.txt").read_text().replace("Is it x?", "Is it z?"))
    error = refused(monkeypatch, capsys, "mme", "--predictions", results, "--root", tmp_path)
    assert "1 of 2 questions have no prediction, such as count/1" in error


def official_mme(folder: Path) -> dict[str, float]:
    """MME's ``calculation.py``, written from its description: scores of perception and cognition."""
    scores = {}
    for part, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        total = 0.0
        for task in tasks:
            lines = (folder / f"{task}.txt").read_text(encoding="utf-8").split("\n")
            rows = [line.split("\t") for line in lines if line.strip()]
            right, both = 0, 0
            for start in range(0, len(rows), 2):
                hits = 0
                for _, _, truth, said in rows[start : start + 2]:
                    truth, said = truth.lower(), said.lower()
                    label = (
                        said if said in ("yes", "no") else "yes" if "yes" in said[:4] else "no" if "no" in said[:4] else "other"
                    )
                    hits += label == truth
                right += hits
                both += hits == 2
            total += 100 * (right / len(rows) + both / (len(rows) / 2))
        scores[part] = total
    return scores


def test_real_mme_questions_as_the_official_tool_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = os.environ.get("PERCEPTIO_REALDATA")
    if not root:
        pytest.skip("PERCEPTIO_REALDATA is not set: the real benchmark files are not at hand")
    rng = np.random.default_rng(0)
    choices = ["Yes", "No", "yes.", "no, it is not", "Not sure", "The answer is yes", "n", ""]
    results = results_folder(tmp_path / "r", Path(root) / "mme/questions", lambda *_: rng.choice(choices))
    expected = official_mme(results)
    for more in ([], ["--root", root]):
        metrics = run(monkeypatch, capsys, "mme", "--predictions", results, *more)
        assert metrics["mme_perception"]["value"] == pytest.approx(expected["perception"], abs=1e-4)
        assert metrics["mme_cognition"]["value"] == pytest.approx(expected["cognition"], abs=1e-4)
        assert metrics["mme_perception"]["n"] + metrics["mme_cognition"]["n"] == 1187
        assert "of 2374 answers" in metrics["unparsed"]["protocol"]


# ------------------------------------------------------------------------------------------------------------ MMBench


@pytest.mark.parametrize("form", ["tsv", "xlsx"])
@pytest.mark.parametrize("with_root", [False, True])
def test_mmbench_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str, with_root: bool
) -> None:
    rows = mmbench_rows()
    (tmp_path / "mmbench").mkdir()
    write_mmbench(tmp_path / "mmbench/MMBench_DEV_EN.tsv", rows)
    table = pd.DataFrame(rows)
    table["prediction"] = [f"{SPANS} {row['answer']}." if row["index"] != "1000002" else "Z" for row in rows]
    table["index"] = table["index"].astype(int)
    table = table.drop(columns="image") if not with_root else table[["index", "prediction"]]
    file = tmp_path / f"model_MMBench_DEV_EN.{form}"
    table.to_excel(file, index=False) if form == "xlsx" else table.to_csv(file, sep="\t", index=False)
    more = ["--root", tmp_path] if with_root else []
    metrics = run(monkeypatch, capsys, "mmbench", "--predictions", file, *more)
    assert (metrics["mmbench"]["value"], metrics["mmbench"]["n"]) == (50.0, 2)
    assert metrics["mmbench/category/scene"]["value"] == 100.0
    assert metrics["unparsed"]["protocol"].startswith("1 of 5")
    if with_root:
        named = run(monkeypatch, capsys, "mmbench_dev_en", "--predictions", file, *more)
        assert named["mmbench"] == metrics["mmbench"]


def test_mmbench_results_that_lack_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mmbench").mkdir()
    write_mmbench(tmp_path / "mmbench/a.tsv", mmbench_rows())
    short = write_tsv(tmp_path / "short.tsv", [{"index": "1", "prediction": "A"}])
    error = refused(monkeypatch, capsys, "mmbench", "--predictions", short, "--root", tmp_path)
    assert "4 of 5 questions have no prediction, such as 1000001, 2, 1000002" in error
    none = write_tsv(tmp_path / "none.tsv", [{"index": "1", "said": "A"}])
    error = refused(monkeypatch, capsys, "mmbench", "--predictions", none, "--root", tmp_path)
    assert "no column prediction" in error
    assert "holds no right answers; --root DIR" in refused(monkeypatch, capsys, "mmbench", "--predictions", short)
    (tmp_path / "broken.xlsx").write_bytes(b"no workbook")
    error = refused(monkeypatch, capsys, "mmbench", "--predictions", tmp_path / "broken.xlsx")
    assert "broken.xlsx: cannot be read as a table" in error
    write_mmbench(tmp_path / "mmbench/b.tsv", mmbench_rows())
    error = refused(monkeypatch, capsys, "mmbench", "--predictions", short, "--root", tmp_path)
    assert "expected one table, found ['a.tsv', 'b.tsv']; name it: mmbench_dev_en, mmbench_dev_en_v11" in error


def test_a_test_set_is_exported_for_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mmbench").mkdir()
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in mmbench_rows()[:2]]
    write_tsv(tmp_path / "mmbench/MMBench_TEST_EN.tsv", rows)
    own = jsonl(tmp_path / "own.jsonl", [{"item_id": row["index"], "raw": "A", "text": "A"} for row in rows])
    error = refused(monkeypatch, capsys, "mmbench_test_en", "--predictions", own, "--root", tmp_path)
    assert "are not public; perceptio export" in error
    out = tmp_path / "model_MMBench_TEST_EN.xlsx"
    arguments = ["mmbench_test_en", "--predictions", str(own), "--root", str(tmp_path), str(out)]
    monkeypatch.setattr("sys.argv", ["perceptio", "export", *arguments])
    main()
    table = pd.read_excel(out)
    assert table["prediction"].tolist() == ["A", "A"]
    assert "answer" not in table


# --------------------------------------------------------------------------------------------- other questions in words


def test_seed_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_seed(tmp_path / "seedbench")
    rows = [{"question_id": key, "prediction": said} for key, said in (("100", "A"), ("101", "B."), ("102", "D"), ("103", "D"))]
    file = jsonl(tmp_path / "seed.jsonl", rows)  # 103 is a video question: left aside
    metrics = run(monkeypatch, capsys, "seedbench", "--predictions", file, "--root", tmp_path)
    assert metrics["seed_image"]["value"] == pytest.approx(200 / 3, abs=1e-4)


def test_lines_as_windows_and_the_official_script_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seed(tmp_path / "seedbench")
    rows = [{"q_id": key, "prediction": said, "gt": "A", "q_type_id": 5} for key, said in ((100, "A"), (101, "B"), (102, "C"))]
    content = "\r\n".join(json.dumps(row) for row in rows) + "\r\n"
    (tmp_path / "results.jsonl").write_bytes(b"\xef\xbb\xbf" + content.encode())
    metrics = run(monkeypatch, capsys, "seedbench", "--predictions", tmp_path / "results.jsonl", "--root", tmp_path)
    assert metrics["seed_image"]["value"] == 100.0
    (tmp_path / "said.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"100": "A", "101": "A", "102": "A"}).encode())
    (tmp_path / "said.tsv").write_bytes("\ufeffindex\tprediction\r\n100\tA\r\n101\tA\r\n102\tA\r\n".encode())
    for name in ("said.json", "said.tsv"):
        metrics = run(monkeypatch, capsys, "seedbench", "--predictions", tmp_path / name, "--root", tmp_path)
        assert metrics["seed_image"]["value"] == pytest.approx(100 / 3, abs=1e-4)


def test_hardblink_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_hardblink(tmp_path / "hardblink", markers=False)
    for n, said in ((3, "AABB"), (4, "DDDC"), (5, "EEEE")):
        rows = [{"question_id": i, "text": f"({letter})"} for i, letter in enumerate(said)]
        jsonl(tmp_path / f"said/blink_{n}pointscenter_answers.jsonl", rows)
    metrics = run(monkeypatch, capsys, "hardblink", "--predictions", tmp_path / "said", "--root", tmp_path)
    assert [metrics[f"hardblink_{n}"]["value"] for n in (3, 4, 5)] == [75.0, 100.0, 25.0]
    # The official answers of the benchmark are a perfect result file.
    metrics = run(monkeypatch, capsys, "hardblink", "--predictions", tmp_path / "hardblink/answers", "--root", tmp_path)
    assert metrics["hardblink_mean"]["value"] == 100.0
    one = tmp_path / "said/blink_3pointscenter_answers.jsonl"
    metrics = run(monkeypatch, capsys, "hardblink_3", "--predictions", one, "--root", tmp_path)
    assert (metrics["hardblink_3"]["value"], metrics["hardblink_3"]["n"]) == (75.0, 4)
    (tmp_path / "said/blink_4pointscenter_answers.jsonl").unlink()
    error = refused(monkeypatch, capsys, "hardblink", "--predictions", one, "--root", tmp_path, "--protocol", "lisa")
    assert "--protocol is for referring segmentation; hardblink has one" in error
    error = refused(monkeypatch, capsys, "hardblink", "--predictions", tmp_path / "said", "--root", tmp_path)
    assert "expected one *4pointscenter*.jsonl" in error


def test_blink_json_in_both_forms(tmp_path: Path) -> None:
    benchmark = BlinkDepth(write_blink(tmp_path / "val-0.parquet"))
    said = {f"val_Relative_Depth_{i}": f"({letter})" for i, letter in ((1, "A"), (2, "A"), (3, "B"))}
    plain, saved = tmp_path / "plain.json", tmp_path / "saved.json"
    plain.write_text(json.dumps({**said, "val_Counting_1": "(A)"}))
    rows = [{"idx": key, "answer": "(A)", "full_prediction": "?", "prediction": text} for key, text in said.items()]
    saved.write_text(json.dumps({"val": rows, "test": []}))
    assert {key: answer.text for key, answer in read_predictions(plain, benchmark).items()} == said
    assert read_predictions(saved, benchmark) == read_predictions(plain, benchmark)
    saved.write_text(json.dumps({"val": [rows[0], rows[0]]}))
    with pytest.raises(ValueError, match="predicted twice"):
        read_predictions(saved, benchmark)


def test_tables_and_lines_for_plain_multiple_choice(tmp_path: Path) -> None:
    ai2d = AI2D(write_tsv(tmp_path / "AI2D_TEST.tsv", table_rows()))
    file = write_tsv(tmp_path / "said.tsv", [{"index": str(i), "prediction": "A"} for i in range(3)])
    assert [answer.text for answer in read_predictions(file, ai2d).values()] == ["A", "A", "A"]
    scienceqa = ScienceQA(write_scienceqa(tmp_path / "sqa"))
    lines = jsonl(tmp_path / "said.jsonl", [{"question_id": key, "text": "A"} for key in ("7", "8", "9", "10")])
    assert list(read_predictions(lines, scienceqa)) == ["7", "9", "10"]


# ---------------------------------------------------------------------------------------------------------- masks


def test_referring_masks_as_run_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_refer(tmp_path / "refcocog")
    whole, half = encode(refer_mask(0, 0, 10, 15)), encode(refer_mask(0, 0, 10, 5))
    rows = [
        {"ref_id": 0, "sent_id": 0, "segmentation": half},  # 50 / 100
        {"sent_id": 1, "segmentation": None},  # 0 / 100
        {"sent_id": 2, "segmentation": [half, whole]},  # 150 / 150
    ]
    file = jsonl(tmp_path / "masks.jsonl", rows)
    metrics = run(monkeypatch, capsys, "refcocog_test", "--predictions", file, "--root", tmp_path)
    assert metrics["refcocog_test_ciou"]["value"] == pytest.approx(100 * 200 / 350, abs=1e-4)
    assert metrics["refcocog_test_giou"]["value"] == pytest.approx(50.0)
    metrics = run(monkeypatch, capsys, "refcocog_test", "--predictions", file, "--root", tmp_path, "--protocol", "lisa")
    assert metrics["refcocog_test_ciou"]["value"] == pytest.approx(100 * 150 / 350, abs=1e-4)  # 50 pixels in both polygons
    assert "LISA" in metrics["refcocog_test_ciou"]["protocol"]
    error = refused(monkeypatch, capsys, "refcocog_test", "--predictions", file, "--root", tmp_path, "--protocol", "glamm")
    assert "--protocol.protocol" in error
    assert "'canonical', 'lisa', 'sa2va' or 'xsam'" in error


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [10, 20], "counts": "zzzz"}, r"row 1 \(2/3\): counts is no compressed run-length string"),
        ({"size": [10, 20], "counts": "0"}, r"row 1 \(2/3\): the compressed run lengths do not describe a mask of \[10, 20\]"),
        ({"size": [10, 20], "counts": ""}, "counts is no compressed"),
        ({"size": [10, 20], "counts": "\u00e9"}, "counts is no compressed"),
        ({"size": [10, 20], "counts": "PPPPPPPPP0"}, "too long"),
        ({"size": [10, 20], "counts": 7}, "counts is of type int"),
        ({"size": [20, 10], "counts": "0"}, r"row 1 \(2/3\): a mask of size \[20, 10\]"),
        ({"size": [10**6, 10**6], "counts": "0"}, "a mask of size"),
        ({"counts": "0"}, "a mask is an object"),
        ({"size": [10, 20], "counts": [10, 20]}, "run lengths must be"),
        ("x", "a mask is an object"),
        ([1], "a mask is an object"),
    ],
)
def test_hostile_masks_are_refused(tmp_path: Path, segmentation: Any, message: str) -> None:
    benchmark = ReferringSegmentation(write_refer(tmp_path / "refcocog"), split="val")
    with pytest.raises(ValueError, match=message):
        read_predictions(jsonl(tmp_path / "m.jsonl", [{"sent_id": 3, "segmentation": segmentation}]), benchmark)


def test_text_where_masks_are_asked_for_is_refused(tmp_path: Path) -> None:
    benchmark = ReferringSegmentation(write_refer(tmp_path / "refcocog"), split="val")
    with pytest.raises(ValueError, match=r"row 1: expected segmentation \(null for no mask\)"):
        read_predictions(jsonl(tmp_path / "m.jsonl", [{"sent_id": 3, "text": "[SEG]"}]), benchmark)


def test_reason_seg_masks_by_picture(tmp_path: Path) -> None:
    write_pair(tmp_path / "val", "a", [{"label": "target", "points": polygon(0, 0, 9, 9)}])
    benchmark = ReasonSeg(tmp_path / "val")
    rows = [{"image": "reason_seg/val/a.jpg", "segmentation": encode(reason_mask(0, 0, 10, 10))}]
    answers = read_predictions(jsonl(tmp_path / "m.jsonl", rows), benchmark)
    assert answers["a"].masks == (encode(reason_mask(0, 0, 10, 10)),)


# ------------------------------------------------------------------------------------------------------- our own files


def test_our_own_rows_keep_the_raw_text_and_strip_again(tmp_path: Path) -> None:
    benchmark = SeedImage(write_seed(tmp_path / "seedbench"))
    rows = [
        {"item_id": key, "raw": f"{SPANS} B", "text": f"{SPANS} B", "masks": [], "depth_codes": [3, 0], "error": None}
        for key in ("100", "101", "102")
    ]
    answers = read_predictions(jsonl(tmp_path / "own.jsonl", rows), benchmark)
    assert {(answer.raw, answer.text) for answer in answers.values()} == {(f"{SPANS} B", "B")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": "100", "prediction": "A"}] * 2, "question 100 is predicted twice"),
        ([{"question_id": "100"}], "row 1: expected prediction or text"),
        ([{"question_id": "100", "prediction": ["A"]}], r"row 1: an answer must be a text, got \['A'\]"),
        ([{"question_id": "100", "segmentation": None}], "row 1: expected prediction or text"),
        ([{"prediction": "A"}], "row 1: expected item_id, question_id, q_id, idx, sent_id or image"),
        ([], "3 of 3 questions have no prediction, such as 100, 101, 102"),
    ],
)
def test_lines_that_do_not_fit_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    benchmark = SeedImage(write_seed(tmp_path / "seedbench"))
    with pytest.raises(ValueError, match=message):
        read_predictions(jsonl(tmp_path / "p.jsonl", rows), benchmark)


def test_other_forms_are_refused(tmp_path: Path) -> None:
    benchmark = SeedImage(write_seed(tmp_path / "seedbench"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question_id": "\xe9"}')
    with pytest.raises(ValueError, match=r"latin\.jsonl: not UTF-8"):
        read_predictions(tmp_path / "latin.jsonl", benchmark)
    (tmp_path / "p.csv").write_text("")
    with pytest.raises(ValueError, match=r"read from \.jsonl, \.tsv, \.xlsx, \.json"):
        read_predictions(tmp_path / "p.csv", benchmark)
    with pytest.raises(ValueError, match="for MME and HardBLINK only"):
        read_predictions(tmp_path, benchmark)


# ---------------------------------------------------------------------------------------------------------- catalogue


def test_every_name_of_the_catalogue_is_a_benchmark() -> None:
    for name in CATALOGUE:
        params = official(name.upper(), root=Path("data"))
        assert params.label == (name if params.kind in ("refer", "grefcoco", "reasonseg") else params.kind)


def test_unknown_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = jsonl(tmp_path / "p.jsonl", [])
    error = refused(monkeypatch, capsys, "refcoco", "--predictions", file, "--root", tmp_path)
    assert "no benchmark 'refcoco'; there are refcoco_val, refcoco_testa, refcoco_testb, refcoco+_val" in error
    assert "hardblink/questions" in refused(monkeypatch, capsys, "hardblink", "--predictions", file, "--root", tmp_path)
    assert "nowhere: no such file" in refused(monkeypatch, capsys, "mme", "--predictions", tmp_path / "nowhere")
    assert "the active profile" in refused(monkeypatch, capsys, "ai2d_test", "--predictions", file)


def test_the_table_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_seed(tmp_path / "seedbench")
    file = jsonl(tmp_path / "p.jsonl", [{"question_id": str(key), "prediction": "A"} for key in (100, 101, 102)])
    arguments = ["seedbench", "--predictions", str(file), "--root", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["perceptio", "score", *arguments])
    main()
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("seed_image")
    assert "33.33 [0.00, 100.00]" in first
    assert "n = 3" in first
    assert "0 of 3 unparsed" in first


def test_real_hardblink_answers_and_mmbench_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = os.environ.get("PERCEPTIO_REALDATA")
    if not root:
        pytest.skip("PERCEPTIO_REALDATA is not set: the real benchmark files are not at hand")
    metrics = run(monkeypatch, capsys, "hardblink", "--predictions", Path(root) / "hardblink/answers", "--root", root)
    assert metrics["hardblink_mean"]["value"] == 100.0
    assert metrics["hardblink_mean"]["n"] == len(HardBlink(Path(root) / "hardblink").items) == 372
    items = MMBench(Path(root) / "mmbench/mmbench_samples_en.tsv").items
    file = tmp_path / "said.xlsx"
    said = pd.DataFrame([{"index": int(item.item_id), "prediction": item.expected} for item in items])
    said.to_excel(file, index=False)
    metrics = run(monkeypatch, capsys, "mmbench", "--predictions", file, "--root", root)
    assert (metrics["mmbench"]["value"], metrics["mmbench"]["n"]) == (100.0, 20)
