"""DVC alone: changes re-run what they touch, a killed run leaves nothing alive, and outputs are one with their cache."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from fake_pipeline import FakePipeline, gone, started
from perceptio_core.params.values import SECTIONS

PERCEPTIO = (sys.executable, "-m", "pipeline.cli")


def test_a_change_reruns_what_it_touches_and_nothing_else(fake: FakePipeline) -> None:
    """The stand-in of `evaluate` reaches a module of the real code."""
    evaluate = fake.root / "stages" / "evaluate.py"
    evaluate.write_text(f"from perceptio_core import rgb\n{evaluate.read_text()}")
    fake.dvc("repro")
    order = fake.ran()
    assert sorted(order) == sorted(s + ("@full" if s in ("cotrain", "evaluate") else "") for s in SECTIONS)
    assert (
        order.index("teacher_depth") < order.index("depth_codebook") < order.index("joint_shards") < order.index("cotrain@full")
    )
    assert order[-2:] == ["evaluate@full", "report"]
    fake.dvc("repro")
    assert fake.ran() == []

    fake.change("evaluate", knob=2)
    fake.dvc("repro")
    assert fake.ran() == ["evaluate@full", "report"]

    fake.change("cotrain", knob=3)
    fake.dvc("repro")
    assert fake.ran() == ["cotrain@full", "evaluate@full", "report"]

    # A comment and a docstring re-run nothing, however the pipeline is started.
    code = fake.root / "perceptio_core" / "rgb.py"
    text = code.read_text()
    code.write_text(text.replace('"""', '"""In other words: ', 1) + "# a comment\n")
    assert "up to date" in fake.run(*PERCEPTIO, "repro")
    fake.dvc("repro")
    assert fake.ran() == []

    # Another function re-runs the stage that reaches it; what that writes is the same here, so it ends with it.
    code.write_text(f"{text}\n\ndef added() -> None:\n    pass\n")
    fake.dvc("repro")
    assert fake.ran() == ["evaluate@full"]
    assert "up to date" in fake.run(*PERCEPTIO, "repro")
    code.write_text(text)
    fake.run(*PERCEPTIO, "repro")
    assert fake.ran() == [], "from DVC's cache"

    fake.activate("full", "control")
    fake.dvc("repro")
    assert fake.ran() == ["cotrain@control", "evaluate@control", "report"]
    shown = json.loads(fake.dvc("metrics", "show", "--json"))
    assert shown[""]["data"]["artifacts/mini/report/summary.json"]["data"] == {"res_ciou": 51.25}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("shell", ["/bin/bash", pytest.param("/bin/sh", marks=pytest.mark.on_request)])
def test_killing_dvc_ends_its_stage_and_the_next_run_completes(
    fake: FakePipeline, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", shell)
    fake.behave(teacher_depth="sleep")
    with fake.start(sys.executable, "-m", "dvc", "repro", "teacher_depth") as dvc:
        pid = started(fake, "teacher_depth")
        dvc.kill()
        assert gone(pid)
    fake.behave()
    fake.dvc("repro", "teacher_depth")
    assert fake.ran()[-1] == "teacher_depth"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_killing_dvc_ends_a_stage_that_is_still_importing(fake: FakePipeline) -> None:
    importing = (
        "import os, time\nwith open('ran.log', 'a') as log:\n    print('sources', os.getpid(), file=log)\ntime.sleep(120)\n"
    )
    (fake.root / "stages" / "sources.py").write_text(importing)
    with fake.start(sys.executable, "-m", "dvc", "repro", "sources") as dvc:
        pid = started(fake, "sources")
        dvc.kill()
        assert gone(pid)


def test_a_checkout_without_git_or_that_may_not_be_written_is_said_in_a_line(fake: FakePipeline) -> None:
    (fake.root / "dvc.lock").write_text("<<<<<<< HEAD\n")
    assert fake.run(*PERCEPTIO, "repro", expect=2) == "perceptio: dvc: './dvc.lock' validation failed\n"
    (fake.root / "dvc.lock").unlink()
    shutil.rmtree(fake.root / ".git")
    said = f"perceptio: {fake.root} is not a git repository, which DVC needs: `git init` makes it; or `dvc config --local"
    assert fake.run(*PERCEPTIO, "repro", expect=2) == f"{said} core.no_scm true`\n"
    fake.dvc("config", "--local", "core.no_scm", "true")
    lock = fake.root / ".dvc" / "tmp" / "lock"
    if os.geteuid() == 0:
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "HOME=/nonexistent")
        fake.run("chmod", "-R", "a+rX", str(fake.root))
        for folder in list(fake.root.parents)[:-2]:
            folder.chmod(0o755)
    else:
        nobody = ()
        (fake.root / ".dvc" / "tmp").chmod(0o555)
    said = f"perceptio: {lock}: Permission denied; whoever runs this must be able to write there\n"
    assert fake.run(*nobody, *PERCEPTIO, "repro", expect=2) == said


def test_an_artifact_and_its_copy_in_the_cache_are_one_file(fake: FakePipeline) -> None:
    """As asked for in treeverse/dvc#799 and #1599: an edit in place would change the cache too, so that it is refused."""
    stand_in = fake.root / "stages" / "sources.py"  # whose files are all equal
    stand_in.write_text(stand_in.read_text().replace("json.dumps(content))", "json.dumps(content) + name)"))
    made = fake.root / "artifacts" / "mini" / "sources" / "records.parquet"
    fake.dvc("repro", "sources")
    first = made.read_text()
    for _ in range(2):  # the second time with the same bytes, which the cache has already
        assert [(file.stat().st_nlink, file.stat().st_mode & 0o222) for file in made.parent.iterdir()] == [(2, 0)] * 4
        fake.dvc("repro", "--force", "-s", "sources")
    fake.change("sources", knob=2)
    fake.dvc("repro", "sources")
    assert made.read_text() != first, "an output is made anew, never written to"
    fake.change("sources", knob=1)
    fake.ran()
    fake.dvc("repro", "sources")
    assert fake.ran() == []
    assert made.read_text() == first, "and what the cache holds is as it was"

    fake.dvc("unprotect", "artifacts/mini/sources")
    made.write_text("by hand")
    fake.dvc("repro", "sources")
    assert made.read_text() == first

    other = Path("/dev/shm")
    if other.is_dir() and other.stat().st_dev != made.stat().st_dev:
        fake.dvc("cache", "dir", "--local", "/dev/shm")
        said = fake.run(*PERCEPTIO, "repro", "sources", expect=2)
        assert "lie on two disks, so that no file can be in both: `dvc cache dir --local FOLDER` names one" in said
