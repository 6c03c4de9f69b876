"""What is looked at before the first stage starts: the full layout passes, and a piece that is missing or broken is named."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from full_layout import full_layout, picture, save
from parameters import values_of
from perceptio_core.data.images import is_picture
from perceptio_core.data.readers.json_heads import first_rows
from perceptio_core.depth.store import encode_depth
from perceptio_core.inputs import look_at_inputs
from perceptio_core.params.profile import Profile, load_profile
from pipeline.data_check import check
from pipeline.data_places import places
from stages import inputs
from stages.inputs import faults

REPOSITORY = Path(__file__).resolve().parent.parent
PROFILES = ("perceptio-1b", "perceptio-4b", "perceptio-8b")
PROFILE = load_profile("perceptio-8b", folder=REPOSITORY / "profiles")
PIECES = [place.path for place in places(PROFILE)]
DATA = ("sources", "evaluate")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_layout(tmp_path_factory.mktemp("full") / "data")


@pytest.fixture
def data(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break; files that are written anew are no longer those of the other tests."""
    copy = tmp_path / "data"
    shutil.copytree(whole, copy, copy_function=os.link)
    monkeypatch.setenv("PERCEPTIO_DATA", str(copy))
    return copy


def found(profile: Profile = PROFILE) -> list[str]:
    return list(faults(profile, stages=DATA))


@pytest.mark.parametrize("name", PROFILES)
def test_the_full_layout_of_every_paper_profile_can_be_read(data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    profile = load_profile(name)
    assert found(profile) == []
    notes = {finding.what: finding.note for finding in look_at_inputs(profile, root=data)}
    assert "18 records; 1 rows refused" in notes["sources.datasets: llava (train)"], "text without an image costs its row alone"
    assert notes["evaluate.benchmarks: mme"] == "56 questions", "14 subtasks of two pictures"
    assert "12 expressions" in notes["evaluate.benchmarks: refcoco+_testb"]


def test_data_check_finds_nothing_but_other_counts_and_checksums(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.is_dir()
    monkeypatch.chdir(REPOSITORY)
    assert not check("perceptio-8b"), "the published files have other counts"
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith(("missing", "fault"))]
    differing = [line for line in lines if line.startswith("differs")]
    assert all("published" in line for line in differing)
    assert len(differing) == 7, "two folders of COCO, three files of references, two tables"
    assert any(line.startswith("ok ") and "SEED-Bench-image" in line and "5 images" in line for line in lines)
    assert any(line.endswith("inputs can be read") and not line.startswith("0 of") for line in lines)


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_that_is_missing_is_named_at_once(data: Path, piece: str) -> None:
    path = data / piece
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    sentences = found()
    assert sentences
    assert all(str(data) in sentence for sentence in sentences)
    name = path.name if piece != "hardblink/answers" else "blink_3pointscenter_answers.jsonl"
    assert any(name in sentence for sentence in sentences)
    assert len(sentences) <= 3


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_that_is_broken_is_named_at_once(data: Path, piece: str) -> None:
    """As where a server sent a page in place of the file, and for every picture of a folder."""
    path = data / piece
    for file in [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]:
        file.unlink()
        file.write_bytes(b"<html><body>Sign in</body></html>")
    sentences = found()
    assert sentences
    assert all(str(data) in sentence for sentence in sentences)
    assert len(sentences) <= 4


@pytest.mark.parametrize("piece", [piece for piece in PIECES if piece.endswith((".json", ".p"))])
def test_a_file_that_was_cut_off_is_named(data: Path, piece: str) -> None:
    content = (data / piece).read_bytes()
    (data / piece).unlink()
    (data / piece).write_bytes(content[: len(content) * 9 // 10])
    assert any(Path(piece).name in sentence for sentence in found())


def _edit(path: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(data: Path) -> None:
        content = (data / path).read_bytes()
        (data / path).unlink()
        (data / path).write_bytes(change(content))

    return edit


def _without_split(split: str) -> Callable[[bytes], bytes]:
    return lambda content: pickle.dumps([ref for ref in pickle.loads(content) if ref["split"] != split])  # noqa: S301 (own)


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (_edit("refcoco/refs(unc).p", _without_split("testB")), "refcoco: no expressions in split 'testB'; it has"),
        (_edit("refcoco/refs(unc).p", _without_split("val")), "no expressions in split 'val'"),
        (
            _edit("mmbench/MMBench_DEV_EN.tsv", lambda content: content.replace(b"\tdev\n", b"\ttest\n")),
            "no rows with split 'dev'",
        ),
        (_edit("mmbench/MMBench_DEV_EN.tsv", lambda content: content.replace(b"image", b"picture", 1)), "image"),
        (
            _edit("ai2d/AI2D_TEST.tsv", lambda content: content.replace(b"answer", b"solution", 1)),
            "columns ['answer'] are missing",
        ),
        (_edit("scienceqa/pid_splits.json", lambda content: content.replace(b'"test"', b'"minitest"')), "no split 'test'"),
        (
            _edit("coco/annotations/instances_train2017.json", lambda content: content.replace(b"file_name", b"name")),
            "file_name",
        ),
        (_edit("seedbench/SEED-Bench.json", lambda content: content.replace(b'"image"', b'"video"')), "data_type"),
        (_edit("hardblink/questions/blink_4pointscenter_questions.jsonl", lambda content: content[:-40]), "not JSON"),
        (_edit("mme/OCR/0001.txt", lambda content: content.replace(b"\tNo", b" No")), "OCR/0001.txt: expected two lines"),
        (_edit("llava/llava_v1_5_mix665k.json", lambda _: b'[{"conversations": []}]'), "none of its 1 rows can be used"),
    ],
)
def test_what_a_table_lacks_is_named(data: Path, break_it: Callable[[Path], None], told: str) -> None:
    break_it(data)
    assert any(told in sentence for sentence in found())


def test_all_faults_are_said_at_once_and_each_once(data: Path) -> None:
    for path in ("refcoco/instances.json", "ai2d/AI2D_TEST.tsv", "llava/llava_v1_5_mix665k.json"):
        (data / path).unlink()
    sentences = found()
    assert len(sentences) == 4, "the references' annotations once for all; the table is held out and scored; the rows"
    (shared,) = [sentence for sentence in sentences if sentence.startswith("sources.datasets: refcoco")]
    assert shared.startswith("sources.datasets: refcoco (train), sources.datasets: refcoco (val), ")
    assert "evaluate.benchmarks: refcoco_testb: " in shared


def test_pictures_that_are_absent_in_part_are_a_note(data: Path) -> None:
    """As reported in bytedance/Sa2VA#21 and haotian-liu/LLaVA#1618: some pictures of the mix are nowhere to be had."""
    (data / "vg/VG_100K/1.jpg").unlink()
    assert found() == []
    notes = {finding.what: finding.note for finding in look_at_inputs(PROFILE, root=data)}
    assert f"1 of 3 pictures looked for in {data / 'vg/VG_100K'} are absent" in notes["sources.datasets: llava (train)"]


def test_a_picture_is_told_by_its_content(data: Path) -> None:
    """As reported in haotian-liu/LLaVA#601: OCR-VQA's covers are GIFs that the rows call .jpg."""
    for number in (1, 2, 3):
        path = data / f"ocr_vqa/images/{number}.jpg"
        path.unlink()
        picture("cover").save(path, "GIF")
    assert found() == []
    assert is_picture(data / "ocr_vqa/images/1.jpg")
    assert is_picture(next((data / "seedbench/SEED-Bench-image").iterdir()))
    assert not is_picture(data / "llava/llava_v1_5_mix665k.json")
    assert not is_picture(data / "coco")


def test_a_linked_folder_is_looked_into(data: Path, tmp_path: Path) -> None:
    shutil.move(data / "mme", tmp_path / "elsewhere")
    (data / "mme").symlink_to(tmp_path / "elsewhere")
    assert found() == []


def test_a_missing_variable_or_root_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PERCEPTIO_DATA", raising=False)
    (sentence,) = found()
    assert "the environment variable PERCEPTIO_DATA is not set" in sentence
    monkeypatch.setenv("PERCEPTIO_DATA", str(tmp_path / "nowhere"))
    (sentence,) = found()
    assert sentence == f"sources.root: {tmp_path / 'nowhere'} is not a folder"


def test_a_disk_that_will_not_do_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = ("sources", "teacher_depth", "joint_shards", "evaluate")
    assert list(faults(PROFILE, stages=stages)) == []
    free = shutil.disk_usage(data)._replace(free=10_000_000)
    monkeypatch.setattr(inputs.shutil, "disk_usage", lambda _: free)
    (sentence,) = faults(PROFILE, stages=stages)
    assert sentence.startswith("disk: teacher_depth, joint_shards keep at least ")
    assert "free are 10 MB" in sentence
    assert list(faults(PROFILE, stages=DATA)) == [], "a check of the data alone writes nothing"


def test_a_third_of_a_depth_map_does_not_compress() -> None:
    """What the estimate of the least that the disk must hold takes for granted."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:388, :518] / 518
    smooth = 1 + y + 0.3 * np.sin(7 * x + draw.random()) + 0.2 * np.cos(5 * y * x)
    assert len(encode_depth("smooth", smooth).png) > smooth.size * 2 / 3


def test_bundled_and_offline_foundations_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = values_of("realdata")
    Path("profiles").mkdir()

    def of(foundations: dict[str, object]) -> list[str]:
        Path("profiles/p.yaml").write_text(yaml.safe_dump(values | {"foundations": foundations}))
        return list(faults(load_profile("p"), stages=("foundations",)))

    assert of({"bundled": str(REPOSITORY / "foundations/mini")}) == []
    (absent,) = of({"bundled": "base"})
    assert "base/SHA256SUMS: absent" in absent
    Path("base/internvl").mkdir(parents=True)
    Path("base/SHA256SUMS").write_text(f"{'0' * 64}  internvl/config.json\n")
    assert of({"bundled": "base"}) == [
        "foundations.bundled: base/SHA256SUMS: lists no file of sam2",
        "foundations.bundled: base/SHA256SUMS: lists no file of depth_anything",
        "foundations.bundled: base/internvl/config.json: absent, though SHA256SUMS lists it",
    ]
    hub = values_of("perceptio-1b")["foundations"]
    Path("offline/internvl").mkdir(parents=True)
    Path("offline/internvl/config.json").write_text("{}")
    told = of(hub | {"offline": "offline"})
    assert told[0] == "foundations.offline: offline/internvl: holds no *.safetensors of OpenGVLab/InternVL3-1B-hf"
    assert "foundations.offline: offline/sam2: holds no sam2.1_hiera_large.pt of facebook/sam2.1-hiera-large" in told


def test_the_command_says_all_and_ends_with_1(data: Path, tmp_path: Path) -> None:
    """What the stage `sources` runs first, in whatever way it was started."""
    (data / "blink/Relative_Depth/val-00000-of-00001.parquet").unlink()
    values = values_of("perceptio-1b")
    values["foundations"] = {"bundled": str(REPOSITORY / "foundations/mini")}
    checkout = tmp_path / "checkout"
    (checkout / "profiles").mkdir(parents=True)
    (checkout / "profiles/p.yaml").write_text(yaml.safe_dump(values))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PERCEPTIO_DATA": str(data)}
    command = [sys.executable, "-m", "stages.sources", "--params", "profiles/p.yaml"]
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert len(lines) == 2, "held out, and a benchmark"
    assert all("blink/Relative_Depth" in line for line in lines)
    assert not (checkout / "artifacts").exists()


def test_the_first_rows_are_found_without_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    long = {"info": {}, "images": [{"id": number} for number in range(10**5)], "annotations": [{"id": 1, "text": "a" * 10**6}]}
    path.write_text(json.dumps(long))
    assert first_rows(path, "images", count=3) == [{"id": 0}, {"id": 1}, {"id": 2}]
    assert len(first_rows(path, "annotations", count=3)[0]["text"]) == 10**6
    with pytest.raises(ValueError, match=r"long\.json: categories must be a list"):
        first_rows(path, "categories", count=1)
    save(tmp_path, "picture.jpg")
    with pytest.raises(ValueError, match=r"picture\.jpg: cut off, or not JSON"):
        first_rows(tmp_path / "picture.jpg", "images", count=1)
