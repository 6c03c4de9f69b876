"""What all stages share: fingerprints, publishing whole folders, dying with DVC, progress lines, bundled models."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest

from claiming import claiming
from perceptio_core import progress
from perceptio_core.metrics import counted, read_metrics, write_metrics
from perceptio_core.params.base import Section
from perceptio_core.params.foundations import FoundationsParams
from stages import foundations
from stages.common import StagePaths, fingerprint, publish, write_measured


class Values(Section):
    a: int = 1
    b: tuple[int, ...] = (1, 2)


def test_what_a_stage_reads_must_have_been_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = StagePaths("toy")
    with pytest.raises(ValueError, match=r"artifacts/toy/cotrain/full: not there yet; `perceptio repro cotrain@full` makes it"):
        paths.made("cotrain", "full")
    with pytest.raises(ValueError, match="`perceptio repro sources` makes it"):
        paths.made("sources")
    paths.out("sources").mkdir(parents=True)
    assert paths.made("sources") == paths.out("sources")


def test_a_fingerprint_follows_values_and_content_only(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    folder.mkdir()
    file.write_text("x")
    (folder / "inner").write_text("y")
    parts = ("text", 3, Values(), file, folder)
    before = fingerprint(*parts)
    os.utime(file, (0, 0))
    assert fingerprint(*parts) == before
    assert len(before) == 16
    assert fingerprint("text", 3, Values(a=2), file, folder) != before
    (folder / "inner").rename(folder / "renamed")
    assert fingerprint(*parts) != before
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "absent")
    with pytest.raises(TypeError):
        fingerprint(object())


def test_publishing_replaces_the_old_output_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = StagePaths("tiny")
    for content in ("old", "new"):
        work = paths.work("cotrain", content)
        (work / content).write_text(content)
        publish(work, paths.out("cotrain", "full"))
    assert paths.out("cotrain", "full") == Path("artifacts/tiny/cotrain/full")
    assert [file.name for file in paths.out("cotrain", "full").iterdir()] == ["new"]
    assert not any(Path(".work/tiny/cotrain").iterdir())


def test_publishing_to_another_disk_leaves_the_work_whole_until_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk to try it with")
    with tempfile.TemporaryDirectory(dir=shared_memory) as other:
        work, out = tmp_path / "out", Path(other) / "artifacts/t/stage"
        for content in ("1", "2"):
            work.mkdir()
            (work / "index").write_text(content)
            with monkeypatch.context() as patched:
                patched.setattr(Path, "rename", Mock(side_effect=OSError("killed")))
                with pytest.raises(OSError, match="killed"):
                    publish(work, out)
            assert (work / "index").read_text() == content
            publish(work, out)
            assert (out / "index").read_text() == content
            assert not list(tmp_path.iterdir())
            assert [path.name for path in (Path(other) / "artifacts").iterdir()] == ["t"]


def test_work_in_progress_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (StagePaths("tiny").work("s", "f") / "half").write_text("done")
    assert (StagePaths("tiny").work("s", "f") / "half").read_text() == "done"


def test_of_two_processes_at_one_stages_work_the_second_waits_and_refuses(tmp_path: Path) -> None:
    with claiming(tmp_path, seconds=60) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "has it\n"
        with claiming(tmp_path, seconds=0) as second:
            output, _ = second.communicate(timeout=60)
        assert second.returncode == os.EX_TEMPFAIL
        owner = rf"process {first.pid} on \S+, begun \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,"
        assert re.search(rf"{owner} is at work on artifacts/tiny/cotrain/full; waiting at most 1 s for it to end", output)
        assert re.search(rf"{owner} is still at work on artifacts/tiny/cotrain/full; wait for it, or end it", output)
        with claiming(tmp_path, seconds=0, rank="1") as other:  # of a group, only rank 0 answers for the work
            assert other.communicate(timeout=60)[0] == "has it\n"
        with claiming(tmp_path, seconds=0) as third:
            assert third.stdout is not None
            assert "waiting at most" in third.stdout.readline()
            first.kill()
            assert third.communicate(timeout=60)[0] == "has it\n", "a killed process holds nothing"
        assert third.returncode == 0


def test_what_is_counted_and_what_is_measured_are_finite_numbers(tmp_path: Path) -> None:
    write_metrics(tmp_path, counted({"b": 1.5, "a": 2}))
    assert json.loads((tmp_path / "summary.json").read_text()) == {"b": 1.5, "a": 2}
    assert [(metric.name, metric.value, metric.low, metric.chance) for metric in read_metrics(tmp_path / "metrics.json")] == [
        ("b", 1.5, None, None),
        ("a", 2, None, None),
    ]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path, counted({"loss": float("nan")}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_measured(tmp_path / "measured" / "m.json", {"seconds": float("inf")})


MISTAKEN = """
import sys
from stages.common import StagePaths, stage_arguments

sys.argv[1:] = []
stage_arguments("A stage.")
WRONG
"""


@pytest.mark.parametrize(
    ("wrong", "said", "traced"),
    [
        ("StagePaths('t').made('sources')", "artifacts/t/sources: not there yet; `perceptio repro sources` makes it\n", False),
        ("int('x')", "ValueError: invalid literal for int() with base 10: 'x'\n", True),
        ("import numpy; numpy.zeros(2).reshape(3)", "cannot reshape array of size 2 into shape (3,)\n", True),
        ("{}['x']", "KeyError: 'x'\n", True),
    ],
)
def test_a_stage_says_its_own_refusals_in_a_sentence_and_all_else_with_a_traceback(
    tmp_path: Path, wrong: str, said: str, traced: bool
) -> None:
    (tmp_path / "stage.py").write_text(MISTAKEN.replace("WRONG", wrong))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, "stage.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.endswith(said)
    assert ("Traceback" in ended.stderr) == traced
    if not traced:
        assert ended.stderr == f"stage: {said}"


def test_progress_lines_say_how_far_and_how_long_still(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        progress.line(label="depth", unit="images", done=50, total=200, seconds=10)
        == "depth: 50/200 images, 5 images/s, 30s left"
    )
    assert progress.line(label="depth", unit="images", done=200, total=200, seconds=40).endswith("5 images/s, 40s in all")
    assert progress.line(label="depth", unit="images", done=50, total=None, seconds=10).endswith("5 images/s, 10s so far")
    assert progress.line(label="", unit="maps", done=20_900, total=None, seconds=10).endswith(" 2,090 maps/s, 10s so far")
    starting = functools.partial(progress.line, label="depth", unit="images", total=101, first=20)
    assert starting(done=1, seconds=20) == "depth: 1/101 images, 20s so far"  # and not 33m left
    assert starting(done=51, seconds=30) == "depth: 51/101 images, 5 images/s, 10s left"
    assert starting(done=101, seconds=40) == "depth: 101/101 images, 2.52 images/s, 40s in all"
    assert [progress.duration(s) for s in (4.2, 125, 3725)] == ["4s", "2m05s", "1h02m"]
    assert list(progress.track([1, 2, 3], label="depth", unit="images")) == [1, 2, 3]
    assert capsys.readouterr().err.startswith("depth: 3/3 images")


def bundle(folder: Path) -> Path:
    """A folder of bundled models with one file each."""
    lines = []
    for model in foundations.MODELS:
        (folder / model).mkdir(parents=True)
        (folder / model / "config.json").write_text(json.dumps({"model": model}))
        lines.append(f"{hashlib.sha256((folder / model / 'config.json').read_bytes()).hexdigest()}  {model}/config.json")
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    return folder


def test_bundled_models_are_copied_whole(tmp_path: Path) -> None:
    source = bundle(tmp_path / "bundle")
    (source / "README.md").write_text("not a model")
    foundations.copy_verified(source, tmp_path / "out")
    copied = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert copied == ["depth_anything/config.json", "internvl/config.json", "sam2/config.json"]


@pytest.mark.parametrize("fault", ["changed", "absent", "outside", "incomplete", "no list"])
def test_a_faulty_bundle_is_refused(tmp_path: Path, fault: str) -> None:
    source = bundle(tmp_path / "bundle")
    listing, config = source / "SHA256SUMS", source / "sam2" / "config.json"
    if fault == "changed":
        config.write_text("{}")
    elif fault == "absent":
        config.unlink()
    elif fault == "outside":
        listing.write_text(listing.read_text().replace("sam2/config.json", "sam2/../../secret"))
    elif fault == "incomplete":
        listing.write_text("".join(listing.read_text().splitlines(keepends=True)[:2]))
    else:
        listing.unlink()
    with pytest.raises(ValueError, match=r"SHA256SUMS|config\.json: not found"):
        foundations.copy_verified(source, tmp_path / "out")


def hub_params(**others: str) -> FoundationsParams:
    model = {"repo": "somebody/something", "revision": "0" * 40}
    sam2 = model | {"checkpoint": "sam2.1_hiera_tiny.pt", "config": "sam2.1_hiera_t"}
    return FoundationsParams.from_mapping({"internvl": model, "sam2": sam2, "depth_anything": model, **others}, where="p")


def test_an_unreachable_hub_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"somebody/something .*could not be fetched(.|\n)*foundations\.offline") as caught:
        foundations.fetch_all(hub_params(), tmp_path / "work")
    assert not isinstance(caught.value, foundations.HubUnreachableError), "no second try can help"


@pytest.mark.parametrize(
    ("status", "may_pass"), [(None, True), (500, True), (429, True), (404, False), (403, False)], ids=lambda value: str(value)
)
def test_only_trouble_that_may_pass_asks_for_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, may_pass: bool
) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert status is not None
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    hub = HTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    if status is None:
        hub.server_close()
    else:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
    with pytest.raises(ValueError, match="could not be fetched") as caught:
        foundations.fetch_all(hub_params(), tmp_path / "work")
    assert isinstance(caught.value, foundations.HubUnreachableError) == may_pass
    if status is not None:
        hub.shutdown()


def test_the_offline_folder_stands_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS_HERE", str(tmp_path))
    with pytest.raises(ValueError, match=r"internvl is not a folder; it must hold somebody/something"):
        foundations.fetch_all(hub_params(offline="${MODELS_HERE}"), tmp_path / "work")
    with pytest.raises(ValueError, match=r"foundations\.offline is .*variable NONESUCH_HERE is not set"):
        foundations.fetch_all(hub_params(offline="${NONESUCH_HERE}"), tmp_path / "work")


@pytest.mark.parametrize(
    "values",
    [{}, {"bundled": "x", "offline": "y"}, {"internvl": {"repo": "a/b", "revision": "0" * 40}}],
)
def test_foundations_come_from_one_place(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="bundled"):
        FoundationsParams.from_mapping(values, where="p")


def test_a_branch_is_no_revision() -> None:
    with pytest.raises(ValueError, match=r"internvl\.revision"):
        FoundationsParams.from_mapping({"internvl": {"repo": "a/b", "revision": "main"}}, where="p")
