"""AI2D, ScienceQA-image, BLINK relative depth and SEEDBench_IMG on hand-worked files in their official layouts."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from official_files import BLINK_PROMPT, png, table_rows, write_blink, write_scienceqa, write_tsv
from perceptio_core.data.images import open_image
from perceptio_core.evaluation.benchmarks import official_files
from perceptio_core.evaluation.benchmarks.ai2d import AI2D
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark
from perceptio_core.evaluation.benchmarks.blink import BlinkDepth
from perceptio_core.evaluation.benchmarks.scienceqa import ScienceQA
from perceptio_core.evaluation.benchmarks.seed_bench import SeedImage
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric

BOOTSTRAP = Bootstrap(samples=100)
ENDING = "Answer with the option's letter from the given choices directly."


def score(benchmark: Benchmark, texts: list[str]) -> dict[str, Metric]:
    said = {item.item_id: Answer(item_id=item.item_id, raw=t, text=t) for item, t in zip(benchmark.items, texts, strict=True)}
    scores = benchmark.score(said, bootstrap=BOOTSTRAP)
    assert scores.headline[0].name == scores.main
    return {metric.name: metric for metric in [*scores.headline, *scores.baselines, *scores.breakdown]}


def test_ai2d(tmp_path: Path) -> None:
    benchmark = AI2D(write_tsv(tmp_path / "AI2D_TEST.tsv", table_rows()))
    assert benchmark.items[0].question == f"Which?\nA. leaf\nB. root\n{ENDING}"
    assert benchmark.items[1].image == base64.b64decode(png())  # a pointer to the first row's
    metrics = score(benchmark, ["(A)", "leaf", "stem."])
    assert (metrics["ai2d"].value, metrics["ai2d"].n) == (pytest.approx(200 / 3), 3)
    assert "AI2D_TEST.tsv (none of the published files)" in metrics["ai2d"].protocol
    assert "0 of 3 unparsed" in metrics["ai2d"].protocol
    assert metrics["ai2d"].chance == pytest.approx((50 + 50 + 100 / 3) / 3)


def test_short_cuts_that_look_at_no_picture(tmp_path: Path) -> None:
    rows = [*table_rows(), {**table_rows(A="a", B="bark", C="stem")[1], "index": "3"}]  # right are A, B, C, B
    metrics = score(AI2D(write_tsv(tmp_path / "t.tsv", rows)), ["C"] * 4)
    majority, longest = metrics["ai2d_majority"], metrics["ai2d_longest"]
    assert (majority.value, majority.n, majority.low) == (50.0, 4, None)
    assert "always B" in majority.protocol
    assert longest.value == 50.0, "A, A, A, B: of several options of one length the first"


def test_a_published_file_is_known_by_its_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tsv(tmp_path / "renamed.tsv", table_rows())
    monkeypatch.setitem(official_files.MD5, hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest(), "AI2D_TEST")
    assert "AI2D (AI2D_TEST)" in score(AI2D(file), ["A", "B", "C"])["ai2d"].protocol


def test_seed_table(tmp_path: Path) -> None:
    benchmark = SeedImage(write_tsv(tmp_path / "SEEDBench_IMG.tsv", table_rows()))
    metrics = score(benchmark, ["A", "B", "unsure"])
    assert metrics["seed_image"].value == pytest.approx(200 / 3)
    assert metrics["seed_image/plants"].value == 100.0
    assert metrics["seed_image/cells"].value == 0.0


def test_tables_without_pictures_can_be_scored(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "image"} for row in table_rows()]
    file = write_tsv(tmp_path / "t.tsv", rows)
    assert [item.image for item in AI2D(file, pictures=False).items] == [b""] * 3
    with pytest.raises(ValueError, match=r"t\.tsv: columns \['image'\] are missing"):
        AI2D(file)


def test_scienceqa(tmp_path: Path) -> None:
    benchmark = ScienceQA(write_scienceqa(tmp_path))
    assert [item.item_id for item in benchmark.items] == ["7", "9", "10"]  # no picture, no question here
    assert benchmark.items[0].image == tmp_path / "images/test/7/image.png"
    assert benchmark.items[1].question == f"Context: Look at the map.\nWhich?\nA. leaf\nB. root\nC. stem\n{ENDING}"
    metrics = score(benchmark, ["C", "I cannot tell", "(E)"])
    assert (metrics["scienceqa_image"].value, metrics["scienceqa_image"].n) == (pytest.approx(200 / 3), 3)
    assert "split test" in metrics["scienceqa_image"].protocol
    assert "1 of 3 unparsed" in metrics["scienceqa_image"].protocol
    assert metrics["scienceqa_image/natural science"].value == 100.0
    with pytest.raises(ValueError, match="no question with a picture"):
        ScienceQA(tmp_path, split="val")
    with pytest.raises(ValueError, match=r"no split 'dev'; it has \['test', 'val'\]"):
        ScienceQA(tmp_path, split="dev")


def test_scienceqa_table_has_the_same_prompt(tmp_path: Path) -> None:
    file = write_tsv(tmp_path / "ScienceQA_TEST.tsv", table_rows(hint="Look."))
    assert ScienceQA(file).items[0].question == f"Context: Look.\nWhich?\nA. leaf\nB. root\n{ENDING}"
    with pytest.raises(ValueError, match="a table has one split"):
        ScienceQA(file, split="test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "question 9: answer 3 is no number of its 3 choices"),
        ({"image": "../x.png"}, "leads out of"),
        ({"choices": None}, "question 9"),
    ],
)
def test_scienceqa_refuses(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScienceQA(write_scienceqa(tmp_path, **change))


def test_blink(tmp_path: Path) -> None:
    write_blink(tmp_path / "val-00000-of-00001.parquet")
    benchmark = BlinkDepth(tmp_path)
    assert [item.item_id for item in benchmark.items] == [f"val_Relative_Depth_{i}" for i in (1, 2, 3)]
    assert benchmark.items[0].question == BLINK_PROMPT
    assert open_image(benchmark.items[0].image).size == (8, 8)
    metrics = score(benchmark, ["(A) A is closer", "B is closer", "Point A is closer to the camera."])
    assert (metrics["blink_depth"].value, metrics["blink_depth"].n) == (pytest.approx(200 / 3), 3)
    assert "split val" in metrics["blink_depth"].protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "hidden"}, "only val has answers"),
        ({"sub_task": "Counting"}, "allowed is Relative_Depth"),
        ({"image_1": None}, "image_1 holds no picture"),
        ({"idx": "1"}, "occurs twice"),
    ],
)
def test_blink_refuses(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlinkDepth(write_blink(tmp_path / "val-0.parquet", **change))


def test_blink_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one val-\*\.parquet"):
        BlinkDepth(tmp_path)
    (tmp_path / "val-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        BlinkDepth(tmp_path)
