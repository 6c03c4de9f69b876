"""Stages as jobs of a real Slurm: two emulated nodes that lose a process, a node, and their place to another job."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_pipeline import WIDE, environment, fake_pipeline
from slurm_nodes import SlurmNodes, missing, slurm_nodes, wait_until
from tiny_checkout import OF_THIS_REPOSITORY, REPOSITORY, assert_same_training, tiny_checkout, train_here

pytestmark = [pytest.mark.on_request, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

STEPS = 12
COTRAIN = ("cotrain", "--variant", "full")


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmNodes]:
    with slurm_nodes(tmp_path_factory.mktemp("slurm")) as nodes:
        monkeypatch.setenv("SLURM_CONF", str(nodes.configuration))
        wait_until(lambda: told("sinfo", "--noheader", "--states=idle", "--partition=low", "--format=%D") == "2")
        yield nodes


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_training_outlives_a_rank_a_node_its_driver_and_another_jobs_turn(tmp_path: Path, nodes: SlurmNodes) -> None:
    one, two = (tiny_checkout(tmp_path / name, steps=STEPS, own_codes=0.5) for name in ("one", "two"))
    train_here(one)

    for name in ("perceptio_core", "stages", "pipeline", "dvc.yaml"):
        (two / name).symlink_to(REPOSITORY / name)
    (two / "machine.yaml").write_text(
        "launch: {cotrain: {launcher: slurm, nodes: 2, processes: 1, options: [--partition=low]}}\n"
    )

    def launched() -> subprocess.Popen[bytes]:
        with (two / "driver.log").open("ab") as log:
            command = [sys.executable, "-m", "pipeline.launch", *COTRAIN]
            return subprocess.Popen(command, cwd=two, env=environment() | OF_THIS_REPOSITORY, stdout=log, stderr=log)

    def said() -> str:
        return (two / "driver.log").read_text()

    def reached(step: int) -> None:
        def there() -> bool:
            assert driver.poll() is None, said()
            return any((two / ".work").glob(f"tiny/cotrain/*/checkpoints/step-{step:08d}"))

        wait_until(there, within_s=600)

    driver = launched()
    try:
        reached(2)
        (rank,) = nodes.processes(SLURMD_NODENAME="n2", RANK="1") or nodes.processes(SLURMD_NODENAME="n2", RANK="0")
        rank.kill()
        reached(4)
        driver.kill()
        driver.wait()
        driver = launched()
        reached(6)
        nodes.lose_node("n2")
        wait_until(lambda: told("squeue", "--noheader", "--format=%T") == "PENDING", within_s=120)
        nodes.start_node("n2")
        reached(8)
        told("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        assert driver.wait(timeout=900) == 0, said()
    finally:
        driver.kill()
        driver.wait()
    text = said()
    assert text.count("submitted the job 1 ") == 1
    assert "the job 1 (perceptio-cotrain-full-" in text, "the second driver has found it"
    wait_until(lambda: told("squeue", "--noheader", "--states=all", "--format=%A %T") == "2 COMPLETED\n1 COMPLETED")
    assert "Restarts=2" in told("scontrol", "show", "job", "1")
    resumed = set(re.findall(r"resuming after step (\d+)", text))
    assert len(resumed) == 3, "once for the rank, the node, and the turn of the other job"

    assert_same_training(one, two)


def test_a_wide_stage_goes_on_without_a_node_that_dies(tmp_path: Path, nodes: SlurmNodes) -> None:
    fake = fake_pipeline(tmp_path)
    fake.dvc("repro", "depth_codebook")
    (tmp_path / "stages" / "joint_shards.py").write_text(WIDE.replace("SECONDS", "2.0"))
    with fake.start(sys.executable, "-m", "pipeline.cli", "run", "joint_shards", "--on", "slurm", "--nodes", "2") as driver:
        log = tmp_path / "made.log"
        wait_until(lambda: log.exists() and len(nodes.processes(SLURMD_NODENAME="n2")) > 4, within_s=240)
        nodes.lose_node("n2")
        output = driver.communicate(timeout=600)[0]
    assert driver.returncode == 0, output
    assert {line.split()[0] for line in log.read_text().splitlines()} == {f"shard-{number}" for number in range(12)}
    assert (tmp_path / "artifacts/mini/joint_shards/index.json").is_file()
    assert "Restarts=0" in told("scontrol", "show", "job", "1")
