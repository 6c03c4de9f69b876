"""DVC's own remote on an S3 store, as docs/storage.md says: pushed, pulled into a fresh clone, nothing left to run;
and a bad network between.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.cli import main

from s3_store import BUCKET, STORES, Proxy, s3_store

PIPELINE = """
stages:
  joint_shards:
    cmd: python make.py
    deps: [make.py]
    outs: [shards]
  cotrain:
    cmd: python train.py
    deps: [train.py, shards/index.json]
    outs: [model]
"""
MAKE = """
from pathlib import Path
Path("shards").mkdir(exist_ok=True)
Path("shards/index.json").write_text("{}")
Path("shards/train.tar").write_bytes(bytes(range(256)) * 1000)
"""
TRAIN = """
from pathlib import Path
Path("model").write_text(Path("shards/index.json").read_text() * 2)
"""


@pytest.fixture(params=STORES)
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    with s3_store(request.param, tmp_path_factory.mktemp("store"), monkeypatch) as proxy:
        yield proxy


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments], cwd=folder, check=True)


def test_a_fresh_clone_pulls_what_was_pushed_and_has_nothing_to_run(
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dvc(folder: Path, *arguments: str, fails: bool = False) -> str:
        """The command, in this process: starting each takes seconds."""
        monkeypatch.chdir(folder)
        caplog.clear()
        code = main(list(arguments))
        said = caplog.text + "".join(capsys.readouterr())
        assert (code != 0) == fails, said
        return said

    caplog.set_level(logging.INFO, logger="dvc")  # DVCLive, in other tests of this process, takes it down
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    first, clone = tmp_path / "first", tmp_path / "clone"
    first.mkdir()
    git(first, "init", "-q")
    dvc(first, "init", "-q")
    for name, text in {"dvc.yaml": PIPELINE, "make.py": MAKE, "train.py": TRAIN}.items():
        (first / name).write_text(text)
    dvc(first, "repro", "-q")
    dvc(first, "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
    dvc(first, "remote", "modify", "store", "verify", "true")
    git(first, "add", ".")
    git(first, "commit", "-qm", "pushed")
    assert "file" in dvc(first, "push")

    git(tmp_path, "clone", "-q", str(first), str(clone))
    dvc(clone, "pull", "shards/index.json")  # what a machine needs that trains from a store of shards
    assert not (clone / "shards" / "train.tar").exists()
    proxy.faults = ["corrupt"]
    dvc(clone, "pull", "model", fails=True)
    assert not (clone / "model").exists()
    dvc(clone, "pull", "model")
    assert "Stage 'cotrain' didn't change, skipping" in dvc(clone, "repro", "-s", "cotrain")
    proxy.faults = ["503", "cut"]
    dvc(clone, "pull")
    assert not proxy.faults
    for name in ("shards/index.json", "shards/train.tar", "model"):
        assert (clone / name).read_bytes() == (first / name).read_bytes()
    said = dvc(clone, "repro")
    assert "Running stage" not in said
    assert "Data and pipelines are up to date." in said
    assert proxy.url not in (clone / ".dvc" / "config").read_text()
