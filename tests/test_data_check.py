"""`perceptio data check`: what is there, what is missing and where it is to be had, before anything runs."""

import base64
import hashlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from parameters import values_of
from perceptio_core.evaluation.benchmarks import official_files
from perceptio_core.params.profile import load_profile
from pipeline.cli import main
from pipeline.data_places import places


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose profile `p` reads a small data root, in which everything is as published."""
    profile = values_of("realdata")
    data = tmp_path / "data"
    profile["sources"] |= {
        "root": "$SOME_DATA",
        "datasets": [
            {
                "name": "refcoco",
                "kind": "refer",
                "path": "refcoco",
                "split": "train",
                "split_by": "unc",
                "images": "coco/train2014",
            }
        ],
        "held_out": ["refcoco/refs(unc).p"],
    }
    profile["evaluate"]["benchmarks"] = [{"kind": "mmbench", "path": "mmbench/MMBench_DEV_EN.tsv"}]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_DATA", str(data))
    Path("profiles").mkdir()
    Path("profiles/p.yaml").write_text(yaml.safe_dump(profile))
    for folder in ("refcoco", "coco/train2014", "mmbench"):
        (data / folder).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 6)).save(data / f"coco/train2014/{number}.jpg")
    refs = [
        {"split": "val", "sentences": [{}] * 4},
        {"split": "testA", "sentences": [{}]},
        {"split": "train", "sentences": [{}]},
    ]
    (data / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs))
    (data / "refcoco/instances.json").write_text("{}")
    (data / "mmbench/MMBench_DEV_EN.tsv").write_text(f"index\timage\n1\t{base64.b64encode(b'x').decode()}\n")
    monkeypatch.setattr("pipeline.data_check.look_at_inputs", lambda *_, **__: iter(()))  # tests/test_inputs.py
    monkeypatch.setattr("pipeline.data_check.IMAGE_COUNTS", {"train2014": 3})
    monkeypatch.setattr("pipeline.data_check.EXPRESSIONS", {("refcoco", "unc"): {"val": 4, "testA": 1}})
    return data


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    monkeypatch.setattr("sys.argv", ["perceptio", "data", "check", "--profile", "p"])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(str(stop.code))
    return code, capsys.readouterr().out.splitlines()


def test_what_is_as_published_and_what_is_not(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(monkeypatch, capsys)
    states = {line.split()[1]: line.split()[0] for line in lines if line.startswith(("ok ", "missing ", "differs "))}
    assert states == {
        "refcoco/refs(unc).p": "ok",
        "refcoco/instances.json": "ok",
        "coco/train2014": "ok",
        "mmbench/MMBench_DEV_EN.tsv": "differs",
    }
    assert code == 1
    text = "\n".join(lines)
    assert "expressions: testA 1, train 1, val 4" in text
    assert "its md5 is not that of the published MMBench_DEV_EN" in text
    assert "for mmbench; to be had from https://opencompass.openxlab.space" in text
    assert "3 of 4 places are there, 1 different" in text
    assert f"teacher_depth  at most {3 * 2 * 640 * 480 / 1e6:.3g} MB" in text

    digest = hashlib.md5((checkout / "mmbench/MMBench_DEV_EN.tsv").read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(official_files.MD5, digest, "MMBench_DEV_EN")
    code, lines = run(monkeypatch, capsys)
    assert code == 0
    assert "4 of 4 places are there" in lines[5]


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda data: (data / "coco/train2014/2.jpg").unlink(), "2 images, .* published are 3 images"),
        (lambda data: [file.unlink() for file in (data / "coco/train2014").iterdir()], "missing  coco/train2014 .*empty"),
        (lambda data: (data / "refcoco/instances.json").unlink(), "missing  refcoco/instances.json"),
        (lambda data: (data / "refcoco/instances.json").write_bytes(b""), "differs .*instances.json .*the file is empty"),
        (lambda data: (data / "refcoco/refs(unc).p").write_bytes(pickle.dumps([{"split": "val", "sentences": []}])), "val 4"),
        (lambda data: (data / "refcoco/refs(unc).p").write_bytes(pickle.dumps(print)), "only plain containers are admitted"),
        (lambda data: (data / "refcoco/refs(unc).p").write_bytes(pickle.dumps([1])), "not REFER's references"),
    ],
)
def test_faults_are_named(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], object],
    told: str,
) -> None:
    break_it(checkout)
    code, lines = run(monkeypatch, capsys)
    assert code == 1
    assert re.search(told, "\n".join(lines))


def test_the_paper_profiles_know_an_origin_for_everything_they_read() -> None:
    for name in ("perceptio-1b", "perceptio-4b", "perceptio-8b"):
        found = places(load_profile(name))
        assert len(found) == len({place.path for place in found}) >= 28
        assert all(place.source.origin.startswith("http") for place in found), (
            "a place that only held_out names would have none"
        )
        by_path = {place.path: place for place in found}
        assert by_path["coco/train2017"].used_by == ["psg", "coco", "llava"]
        assert "groundingLMM" in by_path["GranDf_HA_images/train"].source.origin
        assert "Aurora-perception" in by_path["aurora/train_depth_annealing_data.json"].source.origin
        assert by_path["coco/train2017"].pictures
        assert json.dumps(by_path["scienceqa/images/test"].used_by) == '["scienceqa", "held_out"]'


def test_a_rendered_profile_needs_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["perceptio", "data", "check", "--profile", "mini"])
    main()
    assert "nothing has to be there" in capsys.readouterr().out
