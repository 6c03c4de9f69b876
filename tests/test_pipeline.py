"""The flow: it runs, skips, fails and stops stages, and Prefect shows it."""

import json
import os
import re
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

from fake_pipeline import FakePipeline, copy_of, environment, fake_pipeline, gone, started
from perceptio_core.params.base import read_yaml
from terminal import on_terminal
from unsteady_api import unsteady_api

PERCEPTIO = (sys.executable, "-m", "pipeline.cli")


@pytest.fixture
def from_codebook(up_to_codebook: FakePipeline, tmp_path: Path) -> FakePipeline:
    """A checkout with all up to the depth codebook made."""
    return copy_of(up_to_codebook, tmp_path)


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
    assert re.search(r"cIoU\s+51\.2\s+49\.0 to 53\.5\s+400", output)
    assert f"report: {fake.root / 'artifacts/mini/report/report.html'}" in output

    output = fake.run(*PERCEPTIO, "repro")
    assert "Nothing to do" in output
    assert re.search(r"cIoU\s+51\.2", output)

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


def test_a_server_that_does_not_answer_is_named(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_pipeline.KEPT_SETTINGS", {"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    output = fake.run(*PERCEPTIO, "repro", "sources", expect=2)
    assert "perceptio: Failed to reach API at http://127.0.0.1:9/api/, which PREFECT_API_URL names; without" in output
    assert "Traceback" not in output
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
