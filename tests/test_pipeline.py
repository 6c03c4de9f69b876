"""The frame: dvc.yaml lists what is used, changes re-run what they touch, and the driver runs, skips, fails and stops."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_pipeline import FakePipeline, copy_of, environment, fake_pipeline, gone
from perceptio_core import __version__
from perceptio_core.params.base import read_yaml
from perceptio_core.params.values import SECTIONS
from pipeline.code import fingerprint, fingerprints, source_of
from pipeline.dag import Plan, StageNode
from pipeline.machine import Limits, Machine, Slots, read_machine
from pipeline.terminal import _Lines
from pipeline.work import _cause
from terminal import on_terminal
from unsteady_api import unsteady_api

REPOSITORY = Path(__file__).resolve().parent.parent
PERCEPTIO = (sys.executable, "-m", "pipeline.cli")


def code_below(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def listed(stage: str, folder: Path) -> dict[str, str]:
    """The files of a stage's fingerprint, with the hash of each."""
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    text = fingerprint(stage, names, lambda name: source_of(name, (folder / name).read_bytes()))
    return {name: syntax for syntax, name in (line.split("  ") for line in text.splitlines())}


def test_a_fingerprint_follows_what_runs(tmp_path: Path) -> None:
    files = {
        "stages/__init__.py": "",
        "stages/one.py": "import json\nfrom perceptio_core.a import x\nfrom . import two\n",
        "stages/two.py": "def f():\n    import perceptio_core.late\n",
        "perceptio_core/__init__.py": "",
        "perceptio_core/a/__init__.py": "from .inner import thing\n",
        "perceptio_core/a/x.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import perceptio_core.unused\n"
            "else:\n    from ..b import y\n"
        ),
        "perceptio_core/a/inner.py": "thing = 1\n",
        "perceptio_core/a/pages/page.html": "<p>",
        "perceptio_core/b.py": "try:\n    import perceptio_core.c\nexcept ImportError:\n    pass\n",
        "perceptio_core/c.py": "import perceptio_core.a.x\n",
        "perceptio_core/late.py": "",
    }
    unused = {"perceptio_core/unused.py": "", "perceptio_core/d/__init__.py": "", "perceptio_core/d/page.html": ""}
    code_below(tmp_path, files | unused)
    before = listed("one", tmp_path)
    assert before.keys() == files.keys()
    (tmp_path / "perceptio_core/a/pages/page.html").write_text("<b>")
    assert {name for name, syntax in listed("one", tmp_path).items() if syntax != before[name]} == {
        "perceptio_core/a/pages/page.html"
    }
    (tmp_path / "perceptio_core" / "c.py").write_text("import pipeline.flow\n")
    with pytest.raises(ValueError, match=r"perceptio_core/c\.py imports pipeline\.flow"):
        listed("one", tmp_path)
    with pytest.raises(ValueError, match=r"no module stages\.three"):
        listed("three", tmp_path)


BEFORE = """import math

def half(value: float = 1.5) -> float:
    return math.floor(value) / 2
"""


@pytest.mark.parametrize(
    ("after", "same"),
    [
        (f'"""A module."""\n# a comment\n{BEFORE}', True),
        (BEFORE.replace("    return", '    """A function."""\n\n    # a comment\n    return'), True),
        (BEFORE.replace("math.floor(value) / 2", "(\n        math.floor( value ) / 2  # why\n    )"), True),
        (f"{BEFORE}\n\nLIMIT = 3\n", False),
        (BEFORE.replace("1.5", "2.5"), False),
        (BEFORE.replace("math.floor", "math.ceil"), False),
        (BEFORE.replace("    return", '    print("""A text.""")\n    return'), False),
    ],
)
def test_comments_docstrings_and_formatting_are_no_syntax(after: str, same: bool) -> None:
    assert (source_of("a.py", after.encode()).hash == source_of("a.py", BEFORE.encode()).hash) == same


def test_a_comment_in_every_file_changes_no_stages_fingerprint_and_a_statement_those_that_reach_it(tmp_path: Path) -> None:
    """On the real code: each file gets a comment, and each module and function another docstring."""
    for package in ("perceptio_core", "stages"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = fingerprints(tmp_path)
    assert before == fingerprints(REPOSITORY)
    documented = 0
    for file in tmp_path.rglob("*.py"):
        text = file.read_text()
        documented += '"""' in text
        file.write_text(text.replace('"""', '"""Said in other words. ', 1) + "# the end\n")
    assert documented > 150
    assert fingerprints(tmp_path) == before
    for name in ("perceptio_core/progress.py", "perceptio_core/depth/lookup.py", "perceptio_core/report/plots.py"):
        file, text = tmp_path / name, (tmp_path / name).read_text()
        file.write_text(f"{text}\n\nADDED = 1\n")
        changed = {stage for stage, listing in fingerprints(tmp_path).items() if listing != before[stage]}
        assert changed == {stage for stage, listing in before.items() if f"  {name}\n" in listing} != set()
        file.write_text(text)
    for memory in ("", "{", "[]", '{"rule": "another", "sources": {}}'):  # of what was parsed before
        (tmp_path / ".work/syntax.json").write_text(memory)
        assert fingerprints(tmp_path) == before


@pytest.mark.parametrize("stage", ["sources", "foundations"])
def test_a_fingerprint_lists_all_that_python_imports(stage: str) -> None:
    """Python is the oracle: what a stage has imported before it begins its work is listed."""
    look = (
        f"import sys, stages.{stage}\nprint(*(one.__file__ for one in list(sys.modules.values()) if hasattr(one, '__file__')))"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    files = {Path(file) for file in done.stdout.split() if Path(file).is_relative_to(REPOSITORY)}
    ours = {file.relative_to(REPOSITORY).as_posix() for file in files if ".venv" not in file.parts}
    assert len(ours) >= 10
    assert ours <= {line.split("  ")[1] for line in fingerprints(REPOSITORY)[stage].splitlines()}


def test_dvc_yaml_is_read_in_a_minute_and_knows_the_code_of_every_stage() -> None:
    assert len((REPOSITORY / "dvc.yaml").read_bytes()) < 5000
    stages = read_yaml(REPOSITORY / "dvc.yaml")["stages"]
    assert {stage for stage in stages if f"artifacts/code/{stage}.txt" in stages[stage].get("deps", [])} == set(SECTIONS)


FLOORS = {"vocabulary": 0, "grammar": 0, "depth": 1, "segmentation": 1, "data": 2, "model": 2, "training": 3, "evaluation": 3}


@pytest.mark.parametrize("file", sorted((REPOSITORY / "perceptio_core").rglob("*.py")), ids=lambda file: file.stem)
def test_imports_go_downward_only(file: Path) -> None:
    room = file.relative_to(REPOSITORY / "perceptio_core").parts[0].removesuffix(".py")
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(?:from|import) (?:stages|pipeline)\b", text, flags=re.MULTILINE)
    for other in re.findall(r"^\s*(?:from|import) perceptio_core\.(\w+)", text, flags=re.MULTILINE):
        if room in FLOORS and other in FLOORS and other != room:
            assert FLOORS[other] < FLOORS[room] or (FLOORS[other] == FLOORS[room] == 0)


@pytest.fixture
def fake(tmp_path: Path) -> FakePipeline:
    return fake_pipeline(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> FakePipeline:
    """For tests that change nothing in it."""
    return fake_pipeline(tmp_path_factory.mktemp("untouched"))


@pytest.fixture
def from_codebook(up_to_codebook: FakePipeline, tmp_path: Path) -> FakePipeline:
    """A checkout with all up to the depth codebook made."""
    return copy_of(up_to_codebook, tmp_path)


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
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
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


def started(fake: FakePipeline, stage: str, *, within_s: float = 240.0) -> int:
    """Wait until a stage runs; its process id."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        log = fake.root / "ran.log"
        for line in log.read_text().splitlines() if log.exists() else []:
            name, pid = line.split()
            if name == stage:
                return int(pid)
        time.sleep(0.1)
    raise AssertionError(f"{stage} did not start")


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the tests that do not start their own: its API address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    settings = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment() | settings, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{port}/api/health", server)
            yield f"http://127.0.0.1:{port}/api"
        finally:
            server.terminate()
            server.wait(60)


def wait_for(address: str, server: subprocess.Popen[bytes], *, within_s: float = 600.0) -> None:
    end = time.monotonic() + within_s
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no server at {address}")


def asked(api: str, kind: str, **body: object) -> list[dict[str, Any]]:
    """What the server knows of a kind of thing, or answers to another call."""
    request = urllib.request.Request(
        f"{api}/{kind}" if "/" in kind else f"{api}/{kind}/filter",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        rows: list[dict[str, Any]] = json.load(answer)
    return rows


def test_the_flow_runs_the_pipeline_and_publishes_it(
    from_codebook: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = from_codebook
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server})
    output = fake.run(*PERCEPTIO, "repro")
    assert fake.ran() == ["joint_shards", "cotrain@full", "evaluate@full", "report"]
    assert "joint_shards says hello" in output
    assert re.search(r"res_ciou\s+51\.25\s+49\.0 \.\. 53\.5\s+400", output)
    assert f"report: {fake.root / 'artifacts/mini/report/report.html'}" in output

    output = fake.run(*PERCEPTIO, "repro")
    assert "Nothing to do" in output
    assert re.search(r"res_ciou\s+51\.25", output)

    fake.change("evaluate", knob=2)
    fake.run(*PERCEPTIO, "repro", "--variants", "full,control")
    assert sorted(fake.ran()) == ["cotrain@control", "evaluate@control", "evaluate@full", "report"]
    assert "active: [full, control]" in fake.params.read_text()

    tasks = asked(prefect_server, "task_runs")
    states = {(run["name"], run["state_name"]) for run in tasks}
    assert {("report", "Completed"), ("sources", "Cached"), ("evaluate@control", "Completed")} <= states
    names = {run["id"]: run["name"] for run in tasks}
    edges = {run["name"]: {names[one["id"]] for one in run["task_inputs"].get("wait_for", [])} for run in tasks}
    assert edges["sources"] == set()
    assert edges["joint_shards"] == {"sources", "teacher_depth", "depth_codebook"}
    assert edges["evaluate@control"] == {"sources", "foundations", "cotrain@control"}
    pages = asked(prefect_server, "artifacts", sort="CREATED_DESC")[::-1]
    versions = {key: [page for page in pages if page["key"] == key] for key in {page["key"] for page in pages}}
    # A version per thing that was made: what did not run again has the page that it had.
    assert {key: len(found) for key, found in versions.items()} == {
        "mini-sources": 1,
        "mini-foundations": 1,
        "mini-teacher-depth": 1,
        "mini-depth-codebook": 1,
        "mini-joint-shards": 1,
        "mini-cotrain-full": 1,
        "mini-cotrain-control": 1,
        "mini-evaluate-full": 2,
        "mini-evaluate-control": 1,
        "mini-report": 2,
        "mini-lineage": 2,
    }
    report = versions["mini-report"][1]
    md5 = read_yaml(fake.root / "dvc.lock")["stages"]["report"]["outs"][0]["md5"]
    text = str(report["data"])
    assert md5 in text
    evaluation = versions["mini-evaluate-full"][1]["id"]
    assert re.search(rf"\| res_ciou \| 51.25 \| 51.25 \| 0 \| \[evaluate@\w+\]\({UUID}\) \|", text)
    assert f"[evaluate@full]({evaluation})" in text, "links lead to the version that it was made from"
    for name in ("teacher_depth", "depth_codebook", "joint_shards", "sources", "foundations"):
        page = versions[f"mini-{name.replace('_', '-')}"][0]["id"]
        assert re.search(rf'n\d+\["<b>{name}</b>', text)
        assert re.search(rf'click n\d+ "{page}"', text)
    assert "data:image/png;base64," in text
    assert "../key/mini-report" in str(versions["mini-sources"][0]["data"]), "and back"
    assert f"]({report['id']})" in str(versions["mini-lineage"][1]["data"])
    assert report["task_run_id"] in {run["id"] for run in asked(prefect_server, "task_runs") if run["name"] == "report"}


UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def test_named_stages_run_with_what_they_read_from_and_force_runs_them_alone(
    from_codebook: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = from_codebook
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server})
    fake.change("teacher_depth", knob=2)
    output = fake.run(*PERCEPTIO, "repro", "depth_codebook")
    assert fake.ran() == ["teacher_depth", "depth_codebook"]
    assert "depth_codebook of profile mini is up to date" in output
    assert "report.html" not in output
    assert "Nothing to do: teacher_depth of profile mini is up to date" in fake.run(*PERCEPTIO, "repro", "teacher_depth")
    fake.run(*PERCEPTIO, "repro", "teacher_depth", "--force")
    assert fake.ran() == ["teacher_depth"]


def test_stages_run_at_once_within_the_limits_and_give_what_dvc_gives(
    fake: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server, "CUDA_VISIBLE_DEVICES": "3,5"})
    (fake.root / "machine.yaml").write_text("limits: {gpu: 2, cpu: 1}\n")
    fake.behave(sources="alone", foundations="alone", cotrain="meet")
    fake.run(*PERCEPTIO, "repro", "--variants", "full,control")
    places = [(fake.root / f"met-cotrain{variant}").read_text() for variant in ("full", "control")]
    assert sorted(places) == ["3", "5"], "each has its own GPU"

    plain = fake_pipeline(tmp_path_factory.mktemp("plain"))
    (plain.root / "params.yaml").write_text((fake.root / "params.yaml").read_text())
    plain.dvc("repro")
    assert read_yaml(plain.root / "dvc.lock") == read_yaml(fake.root / "dvc.lock")
    files = {file.relative_to(fake.root) for file in (fake.root / "artifacts").rglob("*") if file.is_file()}
    assert files == {file.relative_to(plain.root) for file in (plain.root / "artifacts").rglob("*") if file.is_file()}
    assert all((fake.root / file).read_bytes() == (plain.root / file).read_bytes() for file in files)


def test_only_a_stage_that_says_that_it_can_help_is_tried_again(
    fake: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server})
    fake.behave(foundations="try again", sources="fail")
    output = fake.run(*PERCEPTIO, "repro", expect=1)
    assert "foundations could not do its work for now; it is tried again in 5 s" in output
    assert sorted(fake.ran()) == ["foundations", "foundations", "sources"]
    assert "perceptio: a stage failed" in output, output
    assert "foundations:" not in output[output.index("perceptio: a stage failed") :]
    runs = asked(prefect_server, "flow_runs", sort="START_TIME_DESC", limit=1)
    assert (runs[0]["state_type"], runs[0]["state_name"]) == ("FAILED", "Stage failed")


def test_cancel_in_the_ui_ends_the_work_within_ten_seconds(
    fake: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server})
    fake.behave(foundations="sleep", sources="sleep")
    with fake.start(*PERCEPTIO, "repro") as driver:
        pids = [started(fake, "foundations"), started(fake, "sources")]
        run = asked(prefect_server, "flow_runs", sort="START_TIME_DESC", limit=1)[0]["id"]
        asked(prefect_server, f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
        assert all(gone(pid, within_s=10) for pid in pids)
        output, _ = driver.communicate(timeout=60)
        assert driver.returncode != 0
    assert "stopped; the same command goes on where this one stood" in output, output
    assert asked(prefect_server, "flow_runs", sort="START_TIME_DESC", limit=1)[0]["state_type"] == "CANCELLED"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: {gpus: 2}", "machine.yaml: limits.gpus: unknown key; allowed are gpu, cpu"),
        ("limits: {cpu: 0}", "machine.yaml: limits.cpu: Input should be greater than or equal to 1, got 0"),
        ("limit: {cpu: 1}", "machine.yaml: limit: unknown key; allowed are limits"),
        ("shards: {store: bucket, cache: c, cache_gib: 1}", "machine.yaml: shards.store: String should match pattern '^s3://"),
        ("curves: paper", "machine.yaml: curves: 'paper'; allowed are tensorboard, wandb"),
        ("limits: {gpu: 3}", "limits.gpu: 3 stages at once, but 2 GPUs; allowed are 1 to 2"),
    ],
)
def test_mistakes_in_the_machines_file_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert read_machine() == Machine(limits=Limits(gpu=1, cpu=2))
    Path("machine.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        Slots(read_machine().limits)
    monkeypatch.setenv("PERCEPTIO_MACHINE", "elsewhere.yaml")
    with pytest.raises(ValueError, match=re.escape("PERCEPTIO_MACHINE names elsewhere.yaml, which is not a file")):
        read_machine()


def test_a_failing_stage_fails_the_run_with_its_last_lines(
    from_codebook: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = from_codebook
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server})
    fake.change("teacher_depth", knob=2)
    fake.behave(teacher_depth="fail")
    output = fake.run(*PERCEPTIO, "repro", expect=1)
    assert "perceptio: a stage failed" in output, output
    summary = output[output.index("perceptio: a stage failed") :].splitlines()
    assert summary[1] == "teacher_depth: teacher_depth: no space left for jokes (exit code 1)"
    assert output.count("no space left for jokes") <= 4, "as it came, in the task's and the run's state, and at the end"
    assert "depth_codebook" not in fake.ran()
    fake.behave()
    fake.run(*PERCEPTIO, "repro", "teacher_depth")
    assert fake.ran() == ["teacher_depth"]


@pytest.mark.parametrize(
    ("fails", "fate"),
    [
        (r"POST /api/artifacts/latest/filter", "500"),
        pytest.param(r"POST /api/flow_runs/$", "503", marks=pytest.mark.on_request),
        pytest.param(r"POST /api/flow_runs/\S+/set_state", "500", marks=pytest.mark.on_request),
        pytest.param(r"POST /api/flow_runs/\S+/set_state", "twice", marks=pytest.mark.on_request),
        pytest.param(r"POST /api/artifacts/$", "reset", marks=pytest.mark.on_request),
        (r"/api/(?!health|admin/version)", "503"),
    ],
)
def test_a_server_under_load_hides_nothing_of_what_happened(
    from_codebook: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch, fails: str, fate: str
) -> None:
    fake = from_codebook
    fake.change("teacher_depth", knob=2)
    fake.behave(depth_codebook="fail")
    with unsteady_api(prefect_server, fails=fails, fate=fate) as api:
        monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": api.api, "PREFECT_CLIENT_MAX_RETRIES": "0"})
        output = fake.run(*PERCEPTIO, "repro", "joint_shards", expect=1)
        assert api.failed
    assert "perceptio: a stage failed" in output, output
    assert "depth_codebook: depth_codebook: no space left for jokes (exit code 1)" in output, output
    assert fake.ran() == ["teacher_depth", "depth_codebook"], output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopping_the_driver_stops_the_stage(
    fake: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server})
    fake.behave(foundations="sleep", sources="sleep")
    with fake.start(*PERCEPTIO, "repro") as driver:
        pid = started(fake, "foundations")
        os.kill(driver.pid, number)
        assert gone(pid)
        output, _ = driver.communicate(timeout=60)
        assert driver.returncode != 0
    if number != signal.SIGKILL:
        assert "stopped; the same command goes on where this one stood" in output, output


def test_without_a_server_the_flow_brings_its_own_past_a_proxy_and_a_shell_that_runs_nothing(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As reported in PrefectHQ/prefect#12896 (a proxy before the server) and treeverse/dvc#2506 (the user's shell)."""
    nowhere = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    settings = nowhere | {"NO_PROXY": "example.org", "no_proxy": "", "SHELL": "/usr/sbin/nologin"}
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", settings)
    output = fake.run(*PERCEPTIO, "repro", "sources")
    assert "sources of profile mini is up to date" in output
    assert (fake.root / ".prefect").is_dir()


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


def test_a_server_that_does_not_answer_is_named(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    output = fake.run(*PERCEPTIO, "repro", "sources", expect=2)
    assert "perceptio: Failed to reach API at http://127.0.0.1:9/api/, which PREFECT_API_URL names; without" in output
    assert "Traceback" not in output
    assert fake.ran() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("repro", "--profile", "nonesuch"), "no profile profiles/nonesuch.yaml; profiles here: "),
        (("repro", "--variants", "full,nonesuch"), "variants has no 'nonesuch'; allowed are"),
        (("predict", "absent.png", "What?"), "absent.png"),
        (("ui", "--port", "65536"), "perceptio: Invalid value for '--port': Input should be less than or equal to 65535"),
        (("repro", "--jobs"), "perceptio: No such option: --jobs (`perceptio repro --help` lists all)"),
        (("repro", "--forse"), "perceptio: No such option: --forse (Possible options: --force"),
        (("rerpo",), "perceptio: No such command 'rerpo'. Did you mean 'repro', 'report'?"),
        (("data", "chek"), "perceptio: No such command 'chek'. Did you mean 'check'?"),
        (("run",), "perceptio: Missing argument 'STAGE'"),
        (("cotrain", "--variant", "nonesuch"), "perceptio: profile mini: variants has no 'nonesuch'; allowed are "),
        (("report", "--variant", "full"), "perceptio: No such option: --variant"),
        (("repro", "cotrain@ful"), "there is no stage 'cotrain@ful', did you mean 'cotrain@full'? dvc.yaml has foundations, "),
        (("repro", "nonesuch"), "there is no stage 'nonesuch'; dvc.yaml has foundations, sources, "),
        (("lineage", "artifacts/mini/report"), "dvc.lock records no stage that wrote below artifacts/"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(untouched: FakePipeline, arguments: tuple[str, ...], message: str) -> None:
    before = untouched.params.read_text()
    output = untouched.run(*PERCEPTIO, *arguments, expect=2)
    assert message in output, output
    assert len(output.splitlines()) == 1, output
    assert untouched.params.read_text() == before


def perceptio(*arguments: str, expect: int = 0, **environment: str) -> str:
    ended = subprocess.run(
        [*PERCEPTIO, *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == expect, ended.stderr
    return ended.stdout


def test_help_shows_every_stage_and_command_with_a_whole_line() -> None:
    shown = perceptio("--help")
    for name in (*SECTIONS, "repro", "status", "predict", "convert", "data", "shards"):
        assert re.search(rf"^ +{name}\s+\S+ \S+", shown, flags=re.MULTILINE), name
    assert "...\n" not in shown.partition("Commands:")[2]
    assert perceptio(expect=2) == shown, "alone"
    assert perceptio("--version") == f"perceptio {__version__}\n"


def test_a_stages_help_is_its_own_text_line_by_line_and_needs_no_torch() -> None:
    script = (
        "import sys, pipeline.cli; sys.argv[1:] = ['cotrain', '--help']; pipeline.cli.main(); assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "\n  Writes  artifacts/<profile>/cotrain/<variant>/\n            checkpoint/   the model with merged" in ended.stdout
    assert "\n  --variant <str>  A name under variants.  [default: full]\n" in ended.stdout


@pytest.mark.parametrize(
    ("imported", "without"),
    [
        ("pipeline.cli", {"torch", "dvc", "prefect", "pydantic", "numpy"}),
        ("pipeline.flow, pipeline.preflight, perceptio_core.report.plots", {"torch", "transformers", "dvclive"}),
    ],
    ids=["help", "a run and the pages of its stages"],
)
def test_commands_bring_nothing_that_is_slow_to_import_and_not_needed(imported: str, without: set[str]) -> None:
    look = f"import sys, {imported}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", look], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert not without & set(modules.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    script = perceptio(_PERCEPTIO_COMPLETE=f"source_{shell}")
    assert "perceptio" in script
    assert f"complete_{shell}" in script
    typed = {"bash": {"COMP_WORDS": "perceptio repro --profile smo", "COMP_CWORD": "3"}}.get(
        shell, {"_TYPER_COMPLETE_ARGS": "perceptio repro --profile smo", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    )
    assert "smoke" in perceptio(_PERCEPTIO_COMPLETE=f"complete_{shell}", **typed)


def test_status_and_a_dry_run_say_what_would_run_and_change_nothing(up_to_codebook: FakePipeline, tmp_path: Path) -> None:
    fake = copy_of(up_to_codebook, tmp_path)
    before = fake.params.read_text()
    said = fake.run(*PERCEPTIO, "status")
    assert re.search(r"^teacher_depth +up to date$", said, re.MULTILINE), said
    assert re.search(r"^joint_shards +would run: not made yet$", said, re.MULTILINE), said
    said = fake.run(*PERCEPTIO, "repro", "--dry-run", "--set", "depth_codebook.knob=2", "depth_codebook")
    assert said.startswith("with depth_codebook.knob: 1 -> 2 (params.yaml stays as it is)\n"), said
    assert re.search(r"^depth_codebook +would run: depth_codebook modified", said, re.MULTILINE), said
    assert "joint_shards" not in said
    assert fake.params.read_text() == before
    assert "Nothing to do" in fake.run(*PERCEPTIO, "repro", "--dry-run", "depth_codebook")
    assert fake.ran() == []


def test_on_a_terminal_a_run_is_a_line_per_stage_and_ctrl_c_is_one_line(
    fake: FakePipeline, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": prefect_server})
    stand_in = fake.root / "stages" / "sources.py"
    made = "print('WARNING sources: one is gray')\nprint('INFO sources: images_train 48')\n"
    stand_in.write_text(f"{stand_in.read_text()}\n{made}")
    fake.behave(teacher_depth="sleep", foundations="fail")
    shown = on_terminal(*PERCEPTIO, "repro", folder=fake.root, environment=environment())
    assert shown.code == 1, shown.lines
    assert "perceptio: a stage failed; its lines above say more:" in shown.lines
    assert "  foundations: no space left for jokes" in shown.lines, shown.lines
    assert [line for line in shown.lines if re.fullmatch(r"\+ sources +\d+s  images_train 48", line)], shown.lines
    assert "sources: one is gray" in shown.lines
    assert not re.search("Task run|Flow run|Running stage|lock file|git add|INFO|hashes", "\n".join(shown.lines)), shown.lines
    assert "> exec python -m pipeline.launch sources" in (fake.root / ".work/mini/logs/sources.log").read_text()
    verbose = on_terminal(*PERCEPTIO, "repro", "sources", "--force", "--verbose", folder=fake.root, environment=environment())
    assert re.search(r"Task run 'sources' - > exec", "\n".join(verbose.lines)), verbose.lines

    fake.behave(foundations="sleep")
    fake.ran()
    shown = on_terminal(*PERCEPTIO, "repro", folder=fake.root, environment=environment(), press_after="foundations says hello")
    assert shown.code == 1
    assert shown.after[-1] == "perceptio: stopped; the same command goes on where this one stood"
    assert [line for line in shown.after if not re.match(r"(\^C)?> |\^C$", line)] == shown.after[-1:], "and the line at work"
    assert shown.seconds < 3
    assert gone(started(fake, "foundations"))
    assert asked(prefect_server, "flow_runs", sort="START_TIME_DESC", limit=1)[0]["state_type"] == "CANCELLED"


def test_of_a_stage_that_says_nothing_the_folder_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    node = StageNode(name="report", upstream=(), downstream=(), needs="cpu")
    with _Lines(Plan(stages=(node,), forced=frozenset(), stale={"report": ()}), "mini") as screen:
        screen.begins("report")
        screen.says("report", "WARNING: 'artifacts/mini/sources/quarantine.jsonl' is empty.")
        screen.ends("report", seconds=1.0, failure=None)
    assert capsys.readouterr().out.splitlines()[1:] == ["+ report      1s  artifacts/mini/report"]


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            ["> exec python -m stages.a", "no space left", "ERROR: failed to reproduce 'a': ... exited with 1"],
            "no space left (exit code 1)",
        ),
        (
            ["> exec python -m stages.a", "ERROR: failed to reproduce 'a': ... exited with 9"],
            "it said nothing (exit code 9)",
        ),
        (
            ["INFO all is well", "ERROR: failed to reproduce 'a': output 'artifacts/a' does not exist"],
            "failed to reproduce 'a': output 'artifacts/a' does not exist",
        ),
        (["Traceback", "ImportError: No module named dvc"], "ImportError: No module named dvc"),
    ],
)
def test_the_cause_of_a_failure_is_the_stages_last_line_or_dvcs(lines: list[str], cause: str) -> None:
    assert _cause(lines) == cause
