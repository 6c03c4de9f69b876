"""`perceptio clean`: what is left behind goes, what a run goes on with stays, what a stage is at work on is never touched."""

import os
import time
from pathlib import Path

import pytest

from claiming import claiming
from pipeline.clean import clean
from stages.common import StagePaths

HOUR = 3600


def worked(stage: str, name: str, *, hours_ago: float, inner: str = "half") -> Path:
    """A folder of unfinished work of one MiB, last changed so long ago."""
    folder = StagePaths("tiny").work(stage, name)
    file = folder / inner
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(1024**2))
    for path in [file, *file.parents]:
        if path.is_relative_to(folder):
            os.utime(path, (time.time() - hours_ago * HOUR,) * 2)
    return folder


def test_only_what_no_run_goes_on_with_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    older, newest = worked("sources", "a" * 16, hours_ago=9), worked("sources", "b" * 16, hours_ago=2)
    full, control = worked("cotrain", f"full-{'c' * 16}", hours_ago=9), worked("cotrain", f"control-{'d' * 16}", hours_ago=2)
    outdone = worked("report", "e" * 16, hours_ago=2)  # the output was made from something else since
    StagePaths("tiny").out("report").mkdir(parents=True)
    moved = worked("depth_codebook", f"{'f' * 16}.replaced", hours_ago=2)
    scenes = Path(".work/scenes/train-128")
    scenes.mkdir(parents=True)

    clean(remove=False, everything=False)
    lines = capsys.readouterr().out.splitlines()
    assert f" 1.05 MB     9.0 h ago  {older}  (left behind)" in lines
    assert f" 1.05 MB     2.0 h ago  {newest}  (the next run goes on with it)" in lines
    assert lines[-1] == "3.15 MB would be freed by --yes; 3.15 MB of unfinished work stay"
    assert all(folder.is_dir() for folder in (older, newest, full, control, outdone, moved))

    clean(remove=True, everything=False)
    assert capsys.readouterr().out.splitlines()[-1] == "3.15 MB freed; 3.15 MB of unfinished work stay"
    assert all(folder.is_dir() for folder in (newest, full, control))
    assert not any(folder.is_dir() for folder in (older, outdone, moved))
    clean(remove=True, everything=True)
    assert not any(folder.is_dir() for folder in (newest, full, control))
    assert scenes.is_dir(), "what pretraining keeps is no unfinished work"


def test_what_a_stage_is_at_work_on_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = [worked("cotrain", f"full-{letter * 16}", hours_ago=hours) for letter, hours in (("a", 9), ("b", 2))]
    free = worked("joint_shards", "d" * 16, hours_ago=9)
    with claiming(tmp_path, seconds=60) as stage:
        assert stage.stdout is not None
        assert stage.stdout.readline() == "has it\n"
        clean(remove=True, everything=True)
        stage.kill()
    assert all(folder.is_dir() for folder in held)
    assert not free.is_dir()
    clean(remove=True, everything=True)
    assert not any(folder.is_dir() for folder in held)
