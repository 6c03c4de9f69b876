"""Stages as jobs of a cluster: the launcher against a stand-in for Slurm, through `perceptio run` and plain `dvc`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from fake_pipeline import WIDE, FakePipeline, copy_of, gone
from fake_slurm import fake_slurm
from parameters import given
from perceptio_core.params.base import read_yaml
from pipeline.launch.clusters import cluster_for
from pipeline.launch.job import Job, State, _follow, run_as_job
from pipeline.launch.slurm import Slurm
from pipeline.machine import Launch, launching, read_machine

PERCEPTIO = (sys.executable, "-m", "pipeline.cli")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The jobs of a stand-in for Slurm, whose commands are on the PATH."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("PATH", os.pathsep.join([str(fake_slurm(folder)), os.environ["PATH"]]))
    return folder / "jobs"


@pytest.fixture
def fake(up_to_codebook: FakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """A checkout up to depth_codebook."""
    monkeypatch.chdir(tmp_path)
    return copy_of(up_to_codebook, tmp_path)


def wait_until(condition: object, *, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)


def lose(driver: subprocess.Popen[str]) -> None:
    """Kill the driver, and wait until its dvc is no more, for DVC looks for the holder of its lock."""
    (dvc,) = psutil.Process(driver.pid).children()
    driver.kill()
    wait_until(lambda: not psutil.pid_exists(dvc.pid))


def test_moving_a_stage_to_the_cluster_reruns_nothing_and_gives_the_same(fake: FakePipeline, cluster: Path) -> None:
    fake.dvc("repro", "-s", "joint_shards")
    here = read_yaml(fake.root / "dvc.lock")
    (fake.root / "machine.yaml").write_text("launch: {joint_shards: {launcher: slurm, options: [--partition=long]}}\n")
    assert "didn't change, skipping" in fake.dvc("repro", "-s", "joint_shards")
    assert not list(cluster.iterdir())
    output = fake.run(*PERCEPTIO, "run", "joint_shards", "--force")
    assert "joint_shards says hello" in output, "the job's log is followed"
    (job,) = [json.loads(path.read_text()) for path in cluster.iterdir()]
    assert job["options"] | {"nodes": "1", "partition": "long"} == job["options"]
    assert read_yaml(fake.root / "dvc.lock") == here
    assert not list((fake.root / ".work" / "mini" / "launch" / "joint_shards").iterdir()), "a job that is home is forgotten"
    assert "didn't change, skipping" in fake.run(*PERCEPTIO, "run", "joint_shards")


def test_a_lost_driver_finds_its_job_again_running_or_finished(fake: FakePipeline, cluster: Path) -> None:
    fake.behave(joint_shards="wait")
    for finished in (False, True):
        with fake.start(*PERCEPTIO, "run", "joint_shards", "--on", "slurm", "--force") as driver:
            wait_until(lambda: (fake.root / "ran.log").exists())
            lose(driver)
        pid = int((fake.root / "ran.log").read_text().split()[1])
        assert not gone(pid, within_s=2, kill=False), "the job goes on without the driver"
        if finished:
            (fake.root / "go").touch()
            wait_until(lambda: list((fake.root / ".work").rglob("exit")))
        with fake.start(*PERCEPTIO, "run", "joint_shards", "--on", "slurm", "--force") as driver:
            seen = []
            if not finished:
                end_of_patience = threading.Timer(60, (fake.root / "go").touch)
                end_of_patience.start()
                for line in driver.stdout:
                    seen.append(line)
                    if "is at work" in line:
                        break
                end_of_patience.cancel()
                (fake.root / "go").touch()
            # Not `communicate`: it forgets what reading by lines has taken from the pipe in advance.
            output = "".join([*seen, driver.stdout.read()])
        assert driver.returncode == 0, output
        assert ("has finished meanwhile" if finished else "is at work; its log from the beginning") in output
        assert "joint_shards says hello" in output
        assert fake.ran() == ["joint_shards"], "it ran once"
        assert (fake.root / "artifacts" / "mini" / "joint_shards" / "index.json").is_file()
        (fake.root / "go").unlink()
    assert len(list(cluster.iterdir())) == 2


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGHUP)], ids=["Ctrl-C", "stopped driver"])
def test_a_stopped_stage_cancels_its_job(fake: FakePipeline, cluster: Path, numbers: tuple[signal.Signals, ...]) -> None:
    fake.behave(joint_shards="sleep")
    (fake.root / "machine.yaml").write_text("launch: {joint_shards: {launcher: slurm}}\n")
    with fake.start(sys.executable, "-m", "pipeline.launch", "joint_shards") as launcher:
        wait_until(lambda: (fake.root / "ran.log").exists())
        pid = int((fake.root / "ran.log").read_text().split()[1])
        for number in numbers:
            launcher.send_signal(number)
        assert gone(pid, within_s=10)
        output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode not in (0, 75)
    assert "cancelled the job" in output
    assert json.loads(next(cluster.iterdir()).read_text())["state"] == "CANCELLED"


def test_a_job_of_older_inputs_is_cancelled_and_not_taken_up(fake: FakePipeline, cluster: Path) -> None:
    fake.behave(joint_shards="sleep")
    with fake.start(*PERCEPTIO, "run", "joint_shards", "--on", "slurm") as driver:
        wait_until(lambda: (fake.root / "ran.log").exists())
        lose(driver)
    fake.behave()
    fake.change("joint_shards", knob=5)
    fake.run(*PERCEPTIO, "run", "joint_shards", "--on", "slurm")
    states = [json.loads(path.read_text())["state"] for path in sorted(cluster.iterdir())]
    assert states == ["CANCELLED", "RUNNING"]
    assert json.loads((fake.root / "artifacts/mini/joint_shards/index.json").read_text())["knob"] == 5


def test_a_failing_job_fails_the_stage(fake: FakePipeline, cluster: Path) -> None:
    fake.behave(joint_shards="fail")
    output = fake.run(*PERCEPTIO, "run", "joint_shards", "--on", "slurm", expect=1)
    assert "no space left for jokes" in output
    assert "joint_shards failed; its lines above say why" in output
    assert len(list(cluster.iterdir())) == 1


def test_what_slurm_took_away_may_be_tried_again(
    fake: FakePipeline, cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.launch.job._ASK_EVERY_S", 0.1)
    monkeypatch.setattr("pipeline.launch.job._SETTLE_S", 0.5)
    monkeypatch.setattr("pipeline.launch.job._notice_loss_of_parent", lambda: None)
    fake.behave(joint_shards="sleep")
    for state, code in (("NODE_FAIL", os.EX_TEMPFAIL), ("TIMEOUT", 1)):

        def end(state: str = state) -> str:
            path = max(cluster.iterdir())
            job = json.loads(path.read_text())
            os.killpg(job["pid"], signal.SIGKILL)
            path.write_text(json.dumps(job | {"state": state}))
            return ""

        ends = iter([end])
        monkeypatch.setattr("pipeline.launch.job._READ_EVERY_S", 0.2)
        monkeypatch.setattr("pipeline.launch.job._pass_on", lambda *_, ends=ends: next(ends, lambda: None)())
        assert run_as_job(Slurm(), "joint_shards", [], Launch(launcher="slurm")) == code
        assert f"ended without the stage's exit code: {state}" in capsys.readouterr().out


class Queue:
    """A cluster that says of a job one thing after the other."""

    def __init__(self, *states: State) -> None:
        self.states = iter(states)

    def state(self, job: Job) -> State:
        if (state := next(self.states)).told == "RUNNING":
            job.ended.write_text("0")  # another attempt, which works
        return state


PENDING, RUNNING = (State(told=told, alive=True, passing=False) for told in ("PENDING", "RUNNING"))
FAILED, NODE_FAIL = State(told="FAILED", alive=False, passing=False), State(told="NODE_FAIL", alive=False, passing=True)


@pytest.mark.parametrize(
    ("states", "code"),
    [((FAILED,), 143), ((PENDING, FAILED), 143), ((PENDING, NODE_FAIL), os.EX_TEMPFAIL), ((PENDING, PENDING, RUNNING), 0)],
)
def test_a_stage_that_failed_has_not_ended_while_the_cluster_has_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: tuple[State, ...], code: int
) -> None:
    monkeypatch.setattr("pipeline.launch.job._ASK_EVERY_S", 0.0)
    monkeypatch.setattr("pipeline.launch.job._READ_EVERY_S", 0.01)
    job = Job(folder=tmp_path / "cotrain-full" / "abc", out=tmp_path / "out")
    job.fresh_folder()
    job.ended.write_text("143")  # killed with its node, or to make room
    assert _follow(job, Queue(*states)) == code  # type: ignore[arg-type]


TRAINING = """
import os, pathlib, signal, sys, time

rank, tried = os.environ["RANK"], pathlib.Path("tried")
print("rank", rank, "of", os.environ["WORLD_SIZE"], sys.argv[1:], flush=True)
if rank == "1" and not tried.exists():
    tried.touch()
    os.kill(os.getpid(), signal.SIGKILL)
while not pathlib.Path("again").exists():
    time.sleep(0.05)
    if rank == "1":
        pathlib.Path("again").touch()
if rank == "0":
    pathlib.Path("artifacts/p/cotrain/full").mkdir(parents=True)
"""


def parameters_of(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A params.yaml of which nothing but the profile is read."""
    Path("params.yaml").touch()
    monkeypatch.setattr("pipeline.launch.job.read_values", lambda: given(profile))


def test_several_nodes_share_the_processes_of_cotrain_and_start_them_again(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.launch.job._notice_loss_of_parent", lambda: None)
    monkeypatch.setattr("pipeline.launch.job._inputs", lambda *_: "abc")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    (tmp_path / "stages" / "cotrain.py").write_text(TRAINING)
    parameters_of("p", monkeypatch)
    arguments = ["--params", ".work/p/launch/cotrain-full/abc/params.yaml", "--variant", "full"]
    assert run_as_job(Slurm(), "cotrain", ["--variant", "full"], Launch(launcher="slurm", nodes=2, processes=1)) == 0
    output = capsys.readouterr().out
    for rank in (0, 1):
        assert output.count(f"rank {rank} of 2 {arguments}") == 2, output
    assert (tmp_path / "artifacts/p/cotrain/full").is_dir()
    (job,) = [json.loads(path.read_text()) for path in cluster.iterdir()]
    assert job["options"] | {"nodes": "2", "ntasks-per-node": "1", "requeue": ""} == job["options"]


@pytest.mark.usefixtures("cluster")
def test_which_stages_several_nodes_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"launch\.report\.nodes: 4; allowed is 1, and more for cotrain, sources, teacher"):
        cluster_for("report", Launch(launcher="slurm", nodes=4))
    with pytest.raises(ValueError, match=r"launch\.cotrain\.launcher: ray; allowed for sources, teacher_depth, joint"):
        cluster_for("cotrain", Launch(launcher="ray"))
    with launching("cotrain", launcher="slurm", nodes=2):
        assert read_machine().launch["cotrain"] == Launch(launcher="slurm", nodes=2)
    assert read_machine().launch == {}


def test_a_wide_stage_on_several_nodes_is_a_ray_of_the_jobs_own(fake: FakePipeline, cluster: Path) -> None:
    (fake.root / "stages" / "joint_shards.py").write_text(WIDE.replace("SECONDS", "0.05"))
    output = fake.run(*PERCEPTIO, "run", "joint_shards", "--on", "slurm", "--nodes", "2", "--force")
    (job,) = [json.loads(path.read_text()) for path in cluster.iterdir()]
    assert job["options"] | {"nodes": "2", "ntasks-per-node": "1", "no-kill": ""} == job["options"]
    assert output.count("assembles") == 1
    made = (fake.root / "made.log").read_text().splitlines()
    assert sorted(made) == sorted(f"shard-{number} token" for number in range(12)), "each once, on a Ray that asks for a token"
    assert [file.name for file in (fake.root / "artifacts/mini/joint_shards").iterdir()] == ["index.json"]
    assert not list((fake.root / ".work/mini/joint_shards").iterdir())
    assert not list((fake.root / ".work/mini/launch/joint_shards").iterdir()), "the token is gone with the job"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("joint_shards", "--on", "moon"),
            "launch of joint_shards.launcher: Input should be 'local', 'ray', 'slurm' or 'kubernetes', got 'moon'",
        ),
        (("joint_shards", "--on", "slurm", "--nodes", "0"), "launch of joint_shards.nodes: "),
        (("joint_shards", "--nodes", "4"), "nodes: 4, but the launcher is local; allowed with slurm and kubernetes"),
        (
            ("joint_shards", "--on", "ray", "--nodes", "4"),
            "nodes: 4, but the launcher is ray; allowed with slurm and kubernetes",
        ),
        (("joint_shards", "--address", "here:1"), "address: here:1, but the launcher is local; allowed with ray"),
        (("joint_shards", "--on", "ray", "--address", "here"), "launch of joint_shards.address: String should match"),
        (
            ("cotrain@full", "--on", "slurm"),
            "cotrain@full reads from joint_shards, which `perceptio repro` must bring up to date",
        ),
    ],
)
def test_mistakes_are_explained(fake: FakePipeline, arguments: tuple[str, ...], message: str) -> None:
    assert message in fake.run(*PERCEPTIO, "run", *arguments, expect=2)


def test_a_cluster_that_cannot_be_had_is_named_before_an_output_goes(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonesuch")
    message = "perceptio: machine.yaml: launcher: slurm, but there is no sbatch on the PATH of this machine"
    assert message in fake.run(*PERCEPTIO, "run", "joint_shards", "--on", "slurm", expect=2)
    (fake.root / "machine.yaml").write_text("launch: {depth_codebook: {launcher: slurm}}\n")
    assert message in fake.run(*PERCEPTIO, "repro", "depth_codebook", "--force", expect=2)
    output = fake.run(sys.executable, "-m", "pipeline.launch", "depth_codebook", expect=1)
    assert message.replace("perceptio", "launch") in output
    assert (fake.root / "artifacts/mini/depth_codebook").is_dir()
