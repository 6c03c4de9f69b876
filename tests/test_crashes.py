"""What is lost when something dies, on stand-ins for the stages: Prefect's server, a worker, a host, one of two drivers."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
import yaml

import fake_pipeline
from fake_pipeline import REPOSITORY, FakePipeline, gone, started

PERCEPTIO = (sys.executable, "-m", "pipeline.cli")
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
SETTINGS = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_DEFAULT_WORK_POOL_NAME": "perceptio", HEARTBEAT: "30"}


@pytest.fixture
def server(fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """`perceptio ui` of the checkout, which its runs find by themselves; ended if the test has left it at work."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with fake.start(*PERCEPTIO, "ui", "--port", str(port)) as ui:
        assert ui.stdout is not None
        assert any("Stop with Ctrl-C" in line for line in ui.stdout)
        settings = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(fake.root / ".prefect")}
        monkeypatch.setattr(fake_pipeline, "KEPT_SETTINGS", settings)
        yield ui
        if ui.poll() is None:
            ui.terminate()
            ui.communicate(timeout=120)


def test_a_run_goes_on_to_its_end_without_its_server(
    fake: FakePipeline, server: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server that is lost does not come back, so that asking again would only take time.
    settings = fake_pipeline.KEPT_SETTINGS | {"PREFECT_CLIENT_MAX_RETRIES": "0"}
    monkeypatch.setattr(fake_pipeline, "KEPT_SETTINGS", settings)
    fake.behave(teacher_depth="wait")
    with fake.start(*PERCEPTIO, "repro", "depth_codebook") as driver:
        started(fake, "teacher_depth")
        for process in psutil.Process(server.pid).children(recursive=True):
            process.kill()
        server.wait(timeout=60)
        (fake.root / "go").touch()
        output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    assert "the stages run on without it" in output
    assert re.search(r"Prefect's server was lost \(.+\); once up again, `perceptio ui` shows the stages", output), output
    assert sorted(fake.ran()) == ["depth_codebook", "foundations", "sources", "teacher_depth"]
    fake.dvc("repro", "depth_codebook")
    assert fake.ran() == []


@pytest.mark.on_request
def test_the_second_of_two_drivers_refuses_and_says_who_is_at_work(fake: FakePipeline, server: subprocess.Popen[str]) -> None:
    assert server.poll() is None
    fake.behave(teacher_depth="wait")
    with fake.start(*PERCEPTIO, "repro", "teacher_depth") as one:
        try:
            started(fake, "teacher_depth")
            output = fake.run(*PERCEPTIO, "repro", "teacher_depth", expect=2)
            assert "another `dvc` is at work in this checkout; wait for it to end" in output
            assert re.search(r"\(PID \d+\): \S+ teacher_depth", output)
            assert "is busy, it is being blocked by" in fake.dvc("repro", "teacher_depth", expect=255)
        finally:
            (fake.root / "go").touch()
        output, _ = one.communicate(timeout=120)
    assert one.returncode == 0, output
    assert sorted(fake.ran()) == ["foundations", "sources", "teacher_depth"]
    assert "up to date" in fake.run(*PERCEPTIO, "repro", "teacher_depth")


@pytest.fixture
def deployed(fake: FakePipeline, server: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """The checkout with its deployments and with what marks lost runs as crashed."""
    assert server.poll() is None
    monkeypatch.setattr(fake_pipeline, "KEPT_SETTINGS", fake_pipeline.KEPT_SETTINGS | SETTINGS)
    shutil.copy(REPOSITORY / "prefect.yaml", fake.root)
    fake.run(*PREFECT, "work-pool", "create", "perceptio", "--type", "process")
    fake.run(*PREFECT, "deploy", "--all")
    fake.run(*PREFECT, "automation", "create", "--from-file", "pipeline/lost_runs.yaml")
    return fake


def worker(fake: FakePipeline) -> subprocess.Popen[str]:
    return fake.start(*PREFECT, "worker", "start", "--pool", "perceptio")


def run_of(fake: FakePipeline, deployment: str) -> str:
    """Ask for a run; its address on the server."""
    found = re.search(r"UUID: (\S+)", fake.run(*PREFECT, "deployment", "run", deployment))
    assert found is not None
    return f"{fake_pipeline.KEPT_SETTINGS['PREFECT_API_URL']}/flow_runs/{found[1]}"


def ends_as(run: str, *, within_s: float) -> tuple[str, str | None]:
    """The state that a run ends in, and what is said of it."""
    end = time.monotonic() + within_s
    while True:
        with urllib.request.urlopen(run, timeout=60) as answer:
            state = json.load(answer)["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") or time.monotonic() > end:
            return state["type"], state["message"]
        time.sleep(0.5)


@pytest.mark.on_request
def test_a_run_of_a_killed_worker_crashes_and_a_new_worker_finds_its_work(deployed: FakePipeline) -> None:
    deployed.behave(teacher_depth="wait")
    with worker(deployed) as first:
        run = run_of(deployed, "stage/depth_codebook")
        pid = started(deployed, "teacher_depth")
        first.kill()
    (deployed.root / "go").touch()
    kind, message = ends_as(run, within_s=60)
    assert kind == "CRASHED", message
    assert gone(pid)
    with worker(deployed) as second:
        assert ends_as(run_of(deployed, "stage/depth_codebook"), within_s=120)[0] == "COMPLETED"
        assert deployed.ran()[-1] == "depth_codebook"

        # Now the whole host: nobody is left to say so, and Prefect notices that no sign of life comes.
        (deployed.root / "go").unlink()
        deployed.behave(joint_shards="wait")
        run = run_of(deployed, "stage/joint_shards")
        pid = started(deployed, "joint_shards")
        processes = psutil.Process(second.pid).children(recursive=True)
        second.kill()
        for process in processes:
            process.kill()
    assert gone(pid)
    kind, message = ends_as(run, within_s=240)
    assert (kind, message) == ("CRASHED", "No sign of life came from its process for 90 seconds.")
    (deployed.root / "go").touch()
    with worker(deployed) as third:
        assert ends_as(run_of(deployed, "stage/joint_shards"), within_s=120)[0] == "COMPLETED"
        third.terminate()
        third.communicate(timeout=120)
    assert deployed.ran() == ["joint_shards", "joint_shards"]


def test_what_marks_lost_runs_fits_how_often_they_give_a_sign_of_life() -> None:
    automation = yaml.safe_load((REPOSITORY / "pipeline" / "lost_runs.yaml").read_text())
    pools = [json.loads(pool.read_text()) for pool in sorted((REPOSITORY / "docker" / "pools").glob("*.json"))]
    compose = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())
    environments = [pool["variables"]["properties"]["env"]["default"] for pool in pools]
    environments.append(compose["services"]["worker"]["environment"])
    assert len(environments) == 3
    made = compose["services"]["deployments"]["command"][-1]
    assert f'prefect automation inspect "{automation["name"]}"' in made
    assert made.endswith("|| prefect automation create --from-file pipeline/lost_runs.yaml; }"), "once"
    for environment in environments:
        assert automation["trigger"]["within"] == 3 * int(environment[HEARTBEAT])
    assert f"export {HEARTBEAT}=30 " in (REPOSITORY / "docs" / "running.md").read_text()
