"""The command ``perceptio predict``, on a tiny checkpoint that answers with masks and depth maps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perceptio_core.data.images import open_image
from perceptio_core.model.inference import Perceptor
from perceptio_core.report.pictures import overlay
from pipeline import cli

QUESTIONS = ["Which point is the closest to the camera?", "yes"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """a/1.png, a/1.jpg, a/b/1.png and a/b/nosuffix; no two alike."""
    draw = np.random.default_rng(0)
    (tmp_path / "a/b").mkdir(parents=True)
    sizes = {"1.png": (40, 48), "1.jpg": (32, 32), "b/1.png": (20, 60), "b/nosuffix": (48, 48)}
    for name, (height, width) in sizes.items():
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(tmp_path / "a" / name, format="JPEG" if name.endswith("jpg") else "PNG")
    return tmp_path / "a"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers have a depth map and one or two masks: left to itself, a model that has learned nothing writes few."""
    monkeypatch.setattr(Perceptor, "predict", partialmethod(Perceptor.predict, segment=True, depth=True, max_masks=2))


@pytest.fixture
def run(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command on the checkpoint, in an empty folder: (exit code, stdout, stderr)."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)

    def command(*arguments: Any, model: Any = checkpoint) -> tuple[int, str, str]:
        named = [] if model is None else ["--checkpoint", model]
        monkeypatch.setattr(sys, "argv", ["perceptio", "predict", *map(str, [*arguments, *named])])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_one_picture_and_one_question(run: Run, checkpoint: Path, pictures: Path) -> None:
    (answer,) = Perceptor.from_pretrained(checkpoint, device="cpu").predict([open_image(pictures / "1.png")], QUESTIONS[:1])
    assert answer.masks
    code, out, err = run(pictures / "1.png", QUESTIONS[0], "--device", "cpu")
    assert (code, out) == (0, f"{answer.text}\n")
    written = sorted(file.name for file in Path().iterdir())
    assert written == ["1.depth.png", *(f"1.mask-{n}.png" for n in range(1, len(answer.masks) + 1)), "1.masks.png"]
    assert all(f"wrote {name}" in err for name in written)
    for number, mask in enumerate(answer.masks, start=1):
        with Image.open(f"1.mask-{number}.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), mask * np.uint8(255))
    shown = overlay(open_image(pictures / "1.png"), answer.masks)
    np.testing.assert_array_equal(np.asarray(open_image(Path("1.masks.png"))), np.asarray(shown))


def test_several_questions_and_a_folder_as_json(run: Run, checkpoint: Path, pictures: Path) -> None:
    """Every file has a name of its own, though three pictures are called 1; batches answer as each question alone does."""
    asked = [option for question in QUESTIONS for option in ("-q", question)]
    code, out, err = run(pictures, *asked, "--json", "--out", "o")
    rows = [json.loads(line) for line in out.splitlines()]
    order = [str(pictures / name) for name in ("1.jpg", "1.png", "b/1.png", "b/nosuffix")]
    assert code == 0
    assert [(row["picture"], row["question"]) for row in rows] == [(path, question) for path in order for question in QUESTIONS]
    assert "predict: 4/4 pictures" in err or "predict: 4 pictures" in err
    files = [file for row in rows for file in (*row["masks"], row["overview"], row["depth"]) if file]
    assert len(files) == len({*files}) == len(list(Path("o").iterdir())) > 8
    assert all(Path(file).is_file() for file in files)
    alone = Perceptor.from_pretrained(checkpoint, device="cpu", batch_size=1)
    for row in rows:
        (answer,) = alone.predict([open_image(Path(row["picture"]))], [row["question"]])
        assert (row["answer"], row["raw"], len(row["masks"])) == (answer.text, answer.raw, len(answer.masks))
        assert row["depth"]


def test_a_bad_picture_costs_a_sentence(run: Run, pictures: Path) -> None:
    (pictures / "cut.png").write_bytes((pictures / "1.png").read_bytes()[:900])
    (pictures / "notes.txt").write_text("not a picture")
    code, out, err = run(pictures / "cut.png", pictures / "1.png", QUESTIONS[0])
    assert code == 1
    assert out.startswith(f"{pictures / '1.png'}: {QUESTIONS[0]}: ")
    assert len(out.splitlines()) == 1
    assert err.count(f"perceptio: {pictures / 'cut.png'}: ") == 1
    assert "Traceback" not in err
    code, out, err = run(pictures, QUESTIONS[0], "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [row["picture"] for row in rows if "error" in row] == [str(pictures / "cut.png")]
    assert len(rows) == 5
    assert "1 files that are no pictures were left out" in err


def test_options_may_stand_anywhere(run: Run, pictures: Path) -> None:
    code, out, _ = run(pictures / "1.png", "--dtype", "bfloat16", "--json", "yes")
    assert code == 0
    assert json.loads(out)["question"] == "yes"
    assert run("--device", "cpu", pictures / "1.png", "--json", pictures / "1.jpg", "yes")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a/1.png"], "a/1.png: the last argument is the question, or --question gives one or several"),
        (["a/1.png", "a/1.jpg"], "a/1.jpg: the last argument is the question"),
        (["a/none.png", "yes"], "a/none.png: no such picture or folder"),
        (["a/1.png", "yes", "--device", "gpu"], "device gpu: "),
        (["a/1.png", "yes", "--device", "cuda:9"], "device cuda:9: "),
        (["a/1.png", "yes", "--out", "a/1.png"], "a/1.png: "),
        (["a", "yes", "--out", "a/b"], "--out a/b: lies in a, so that masks would be taken for pictures; name another folder"),
        (["void", "yes"], "void: no picture there"),
        (["a/1.png", "yes", "--checkpoint", "a"], "a: no trained model here"),
        (["a/1.png", "yes", "--checkpoint", "/a/b/c"], "/a/b/c: no trained model here"),
    ],
)
def test_a_mistake_is_one_sentence(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, reason: str
) -> None:
    monkeypatch.chdir(pictures.parent)
    Path("void").mkdir()
    code, out, err = run(*arguments, **({"model": None} if "--checkpoint" in arguments else {}))
    assert (code, out) == (2, "")
    assert err.startswith(f"perceptio: {reason}")
    assert len(err.strip().splitlines()) == 1


def test_a_checkpoint_without_its_weights_is_one_sentence(run: Run, pictures: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part/config.json").write_bytes((checkpoint / "config.json").read_bytes())
    code, _, err = run(pictures / "1.png", "yes", model=tmp_path / "part")
    assert code == 2
    assert err.strip().splitlines()[-1].startswith(f"perceptio: {tmp_path / 'part'}: no checkpoint that can be read: ")


def test_outside_a_checkout(run: Run, pictures: Path, checkpoint: Path, tmp_path: Path) -> None:
    code, _, err = run(pictures / "1.png", "yes", model=None)
    assert code == 2
    assert err == "perceptio: there is no params.yaml here that says which model was trained: name one by --checkpoint\n"
    command = [sys.executable, "-m", "pipeline.cli", "predict", pictures / "1.png", "yes", "--checkpoint", checkpoint]
    done = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
