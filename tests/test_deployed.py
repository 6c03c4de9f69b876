"""prefect.yaml: its deployments on a real server, with a real worker of a process pool, and in pools of docker/pools/."""

import json
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import fake_pipeline
from fake_pipeline import REPOSITORY, FakePipeline
from perceptio_core.params.values import SECTIONS

PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
DEPLOYMENTS = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]


def test_every_stage_and_the_whole_are_deployed() -> None:
    stages = {one["name"]: one for one in DEPLOYMENTS if one["entrypoint"] == "pipeline/deployed.py:stage"}
    assert list(stages) == list(SECTIONS)
    assert all(one["parameters"] == {"name": name} for name, one in stages.items())
    assert [one["name"] for one in DEPLOYMENTS if one["name"] not in stages] == ["all"]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePipeline]:
    """A checkout with its deployments, a server for it, and a worker that takes its runs."""
    fake = fake_pipeline.fake_pipeline(tmp_path)
    (tmp_path / "prefect.yaml").write_text((REPOSITORY / "prefect.yaml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_DEFAULT_WORK_POOL_NAME": "perceptio",
        "PREFECT_HOME": str(tmp_path / ".prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    monkeypatch.setattr(fake_pipeline, "KEPT_SETTINGS", settings)
    started = []
    try:
        monkeypatch.setattr(fake_pipeline, "KEPT_SETTINGS", {})
        started.append(fake.start(sys.executable, "-m", "pipeline.cli", "ui", "--port", str(port)))
        assert started[0].stdout is not None
        assert any("Stop with Ctrl-C" in line for line in started[0].stdout)
        monkeypatch.setattr(fake_pipeline, "KEPT_SETTINGS", settings)
        fake.run(*PREFECT, "work-pool", "create", "perceptio", "--type", "process")
        fake.run(*PREFECT, "deploy", "--all")
        started.append(fake.start(*PREFECT, "worker", "start", "--pool", "perceptio"))
        yield fake
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)


@pytest.mark.on_request
def test_a_worker_runs_what_is_asked_of_the_server(served: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    output = served.run(*PREFECT, "deployment", "run", "stage/depth_codebook", "--watch")
    assert "Completed" in output
    assert set(served.ran()) == {"sources", "foundations", "teacher_depth", "depth_codebook"}
    output = served.run(*PREFECT, "deployment", "run", "stage/depth_codebook", "--param", "force=true", "--watch")
    assert served.ran() == ["depth_codebook"]

    served.behave(joint_shards="fail")
    output = served.run(*PREFECT, "deployment", "run", "pipeline/all", "--watch", expect=1)
    assert "Failed" in output
    assert served.ran() == ["joint_shards"]

    served.behave(joint_shards="sleep")
    output = served.run(*PREFECT, "deployment", "run", "stage/joint_shards")
    run = re.search(r"UUID: (\S+)", output)
    assert run is not None, output
    pid = _pid(served, "joint_shards")
    served.run(*PREFECT, "flow-run", "cancel", run[1])
    assert fake_pipeline.gone(pid, within_s=10)
    end = time.monotonic() + 90  # the worker waits for its process to end before it says so
    while _told(f"flow_runs/{run[1]}")["state"]["type"] in ("RUNNING", "CANCELLING") and time.monotonic() < end:
        time.sleep(0.5)
    assert _told(f"flow_runs/{run[1]}")["state"]["type"] == "CANCELLED"

    # Last, for it moves the deployments: what deploys to the process pool deploys to the others.
    for kind in ("docker", "kubernetes"):
        template = REPOSITORY / "docker" / "pools" / f"{kind}.json"
        served.run(*PREFECT, "work-pool", "create", kind, "--type", kind, "--base-job-template", str(template))
        settings = fake_pipeline.KEPT_SETTINGS | {"PREFECT_DEFAULT_WORK_POOL_NAME": kind}
        monkeypatch.setattr(fake_pipeline, "KEPT_SETTINGS", settings)
        served.run(*PREFECT, "deploy", "--all")
        assert _told(f"work_pools/{kind}")["base_job_template"] == json.loads(template.read_text())
        deployed = _told("deployments/name/stage/cotrain")
        assert deployed["work_pool_name"] == kind
        (step,) = deployed["pull_steps"]
        assert step == {"prefect.deployments.steps.set_working_directory": {"directory": str(served.root)}}


def _told(path: str) -> Any:
    """What the server answers."""
    with urllib.request.urlopen(f"{fake_pipeline.KEPT_SETTINGS['PREFECT_API_URL']}/{path}") as answer:
        return json.load(answer)


def _pid(fake: FakePipeline, stage: str) -> int:
    """The process of a stage, once it runs."""
    log, end = fake.root / "ran.log", time.monotonic() + 90
    while time.monotonic() < end:
        found = re.search(rf"^{stage} (\d+)$", log.read_text(), re.MULTILINE) if log.exists() else None
        if found:
            return int(found[1])
        time.sleep(0.2)
    raise AssertionError(f"{stage} did not start")
