"""MME on hand-worked files and on the real ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from official_files import write_mme
from perceptio_core.evaluation.benchmarks.benchmark import Answer
from perceptio_core.evaluation.benchmarks.mme import COGNITION, MME, PERCEPTION
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric

BOOTSTRAP = Bootstrap(samples=200)


def answer(benchmark: MME, texts: list[str]) -> dict[str, Answer]:
    ids = [item.item_id for item in benchmark.items]
    return {key: Answer(item_id=key, raw=text, text=text) for key, text in zip(ids, texts, strict=True)}


def named(metrics: list[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def test_acc_and_acc_plus_by_hand(tmp_path: Path) -> None:
    folder = write_mme(tmp_path, {"count": ["a.jpg", "b.jpg"], "existence": ["c.jpg"], "code_reasoning": ["d.jpg"]})
    benchmark = MME(folder)
    assert [item.item_id.split("/")[0] for item in benchmark.items] == ["existence"] * 2 + ["count"] * 4 + [
        "code_reasoning"
    ] * 2
    # existence: both right, 100 + 100. count: yes yes | yes no -> acc 3/4, acc+ 1/2 = 125. code: "y" no.
    texts = ["Yes", "No", "Yes", "Yes", "yes.", "no", "y", "the answer is no"]
    scores = benchmark.score(answer(benchmark, texts), bootstrap=BOOTSTRAP)
    metrics, parts = named(scores.headline), named(scores.breakdown)
    assert metrics["mme_perception"].value == 325.0
    assert metrics["mme_perception"].n == 3
    assert "2 of 10 subtasks" in metrics["mme_perception"].protocol
    assert metrics["mme_cognition"].value == 0.0
    assert parts["mme/count"].value == 125.0
    assert parts["mme_cognition/lmms_eval"].value == 50.0  # y counts, acc 1/2
    assert parts["mme_cognition/vlmevalkit"].value == 50.0  # "the answer is no" counts, acc 1/2
    assert parts["mme_perception/vlmevalkit"].value == 325.0
    assert (scores.unparsed, scores.parsable) == (2, 8)
    assert metrics["mme_perception"].chance == 150.0
    majority = named(scores.baselines)
    assert majority.keys() == {"mme_perception_majority", "mme_cognition_majority"}
    assert majority["mme_perception_majority"].value == 100.0, "half of the questions of two subtasks, and no pair"
    assert metrics["mme_cognition"].high == pytest.approx(200 * 0.7935, abs=0.01)  # none of one pair right: Wilson's interval


def test_chance_is_what_a_random_yes_or_no_gets(tmp_path: Path) -> None:
    benchmark = MME(write_mme(tmp_path, {"count": ["a.jpg", "b.jpg"], "existence": ["c.jpg"]}))
    rng = np.random.default_rng(0)
    found = []
    for _ in range(800):
        said = answer(benchmark, [str(text) for text in rng.choice(["Yes", "No"], 6)])
        (metric,) = benchmark.score(said, bootstrap=Bootstrap(samples=1)).headline
        found.append(metric.value)
    assert metric.chance == pytest.approx(np.mean(found), abs=6)


def test_the_majority_answer_of_each_subtask(tmp_path: Path) -> None:
    """Of files whose pairs are not one yes and one no."""
    folder = write_mme(tmp_path, {"count": ["a.jpg", "b.jpg"]})
    (folder / "questions/count.txt").write_text("a.jpg\tx?\tNo\na.jpg\ty?\tNo\nb.jpg\tx?\tNo\nb.jpg\ty?\tYes\n")
    benchmark = MME(folder)
    (metric,) = benchmark.score(answer(benchmark, ["Yes"] * 4), bootstrap=BOOTSTRAP).baselines
    assert (metric.value, metric.n) == (75.0 + 50.0, 2)
    assert "count no" in metric.protocol


def test_pairs_without_their_image_are_left_out_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    benchmark = MME(write_mme(tmp_path, {"count": ["a.jpg", "b.jpg"], "OCR": ["c.jpg"]}, absent=("a.jpg", "c.jpg")))
    assert len(benchmark.items) == 2
    scores = benchmark.score(answer(benchmark, ["Yes", "No"]), bootstrap=BOOTSTRAP)
    (metric,) = scores.headline
    assert (metric.value, metric.n) == (200.0, 1)
    assert "count 1/2" in metric.protocol
    assert caplog.messages == [
        "MME OCR: 0 of 1 images are there; the others are not asked about",
        "MME count: 1 of 2 images are there; the others are not asked about",
    ]
    caplog.clear()
    assert len(MME(write_mme(tmp_path / "few", {"count": ["a.jpg", "b.jpg"]}), limit=1).items) == 2
    assert caplog.messages == [], "a limit is the reader's own"
    with pytest.raises(ValueError, match="none of the images"):
        MME(write_mme(tmp_path / "none", {"count": ["a.jpg"]}, absent=("a.jpg",)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("count", "a.jpg\tIs it?\tYes\n", "1 lines"),
        ("count", "a.jpg\tIs it?\tYes\nb.jpg\tIs it?\tNo\n", r"count.txt:1: .*'a.jpg' and 'b.jpg'"),
        ("count", "a.jpg\tIs it?\tPerhaps\na.jpg\tIs it?\tNo\n", r"count.txt:1: expected image TAB"),
        ("counting", "", "no MME subtasks"),
        ("count", "../a.jpg\tIs it?\tYes\n../a.jpg\tIs it?\tNo\n", "leads out of"),
    ],
)
def test_refusals(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "questions").mkdir()
    (tmp_path / f"questions/{name}.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        MME(tmp_path)


def test_real_files() -> None:
    root = os.environ.get("PERCEPTIO_REALDATA")
    if not root:
        pytest.skip("PERCEPTIO_REALDATA is not set: the real benchmark files are not at hand")
    files = sorted((Path(root) / "mme/questions").glob("*.txt"))
    assert {file.stem for file in files} == {*PERCEPTION, *COGNITION}
    benchmark = MME(Path(root) / "mme")
    assert sum(benchmark.found.values()) == 1187
    tasks = {item.item_id.split("/")[0] for item in benchmark.items}
    assert tasks == {"existence", "count", "position"}
    assert len(benchmark.items) == 2 * 3 * 17
    scores = benchmark.score(answer(benchmark, [item.expected for item in benchmark.items]), bootstrap=BOOTSTRAP)
    assert [(metric.name, metric.value) for metric in scores.headline] == [("mme_perception", 600.0)]


def write_release(folder: Path, tasks: dict[str, list[str]], *, parted: tuple[str, ...] = ("posters",)) -> Path:
    """The same questions as `write_mme`, in the layout of the makers' download."""
    for task, images in tasks.items():
        pictures = folder / task / "images" if task in parted else folder / task
        texts = folder / task / "questions_answers_YN" if task in parted else folder / task
        for place in (pictures, texts):
            place.mkdir(parents=True, exist_ok=True)
        for image in images:
            (pictures / image).write_bytes(b"")
            (texts / f"{Path(image).stem}.txt").write_text("Is it x?\tYes\nIs it y?\tNo\n\n")
    return folder


@pytest.mark.parametrize("below", ["", "MME_Benchmark_release_version", "MME_Benchmark_release_version/MME_Benchmark"])
def test_the_makers_own_layout_gives_the_same_questions(tmp_path: Path, below: str) -> None:
    tasks = {"OCR": ["0001.jpg", "0002.jpg"], "posters": ["tt1.jpg", "tt2.jpg"], "code_reasoning": ["0001.png"]}
    write_release(tmp_path / "release" / below, tasks)
    (tmp_path / "release" / below / "eval_tool").mkdir()
    listed, packed = MME(write_mme(tmp_path / "listed", tasks)), MME(tmp_path / "release")
    assert [(item.item_id, item.question, item.expected) for item in packed.items] == [
        (item.item_id, item.question, item.expected) for item in listed.items
    ]
    assert [item.image.name for item in packed.items if isinstance(item.image, Path)] == [
        item.image.name for item in listed.items if isinstance(item.image, Path)
    ]
    assert all(isinstance(item.image, Path) and item.image.is_file() for item in packed.items)


@pytest.mark.parametrize(
    "text", ["Is it x?\tYes\n", "Is it x?\tYes\nIs it y?\tmaybe\n", "Is it x? Yes\nIs it y? No\n", "a\tYes\n" * 3]
)
def test_a_malformed_text_of_the_makers_layout_is_named(tmp_path: Path, text: str) -> None:
    write_release(tmp_path, {"OCR": ["1.jpg"]})
    (tmp_path / "OCR/1.txt").write_text(text)
    with pytest.raises(ValueError, match=r"OCR/1\.txt: expected two lines, each question TAB Yes or No"):
        MME(tmp_path)


def test_a_picture_that_the_makers_layout_lacks_leaves_its_pair_out(tmp_path: Path) -> None:
    write_release(tmp_path, {"OCR": ["1.jpg", "2.jpg"]})
    (tmp_path / "OCR/1.jpg").unlink()
    assert [item.item_id for item in MME(tmp_path).items] == ["OCR/3", "OCR/4"]
