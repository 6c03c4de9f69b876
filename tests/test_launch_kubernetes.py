"""Stages as Kubernetes Jobs: the manifests against Kubernetes' own schemas, and the launcher against a stand-in for kubectl."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from fake_kubectl import fake_kubectl
from fake_pipeline import WIDE, FakePipeline, copy_of, gone
from pipeline.launch.job import Job
from pipeline.launch.kubernetes import manifests, name_of
from pipeline.machine import Launch, Pods

VERSIONS = ("1.31", "1.37")
STAGE = ["stages.cotrain", "--profile", "perceptio-8b", "--variant", "full"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return Job(folder=Path(".work/p/launch/depth_codebook-a_b/0123456789abcdef"), out=Path("artifacts/p/depth_codebook"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("nodes", [1, 4])
def test_the_manifests_are_kubernetes_own(job: Job, nodes: int, version: str) -> None:
    pods = Pods(image="registry.example/perceptio:1", claim="work", gpus=8, memory="200Gi", shared_memory="64Gi")
    made = manifests(job, STAGE, Launch(launcher="kubernetes", nodes=nodes, pods=pods), pods)
    assert [one["kind"] for one in made] == (["Job"] if nodes == 1 else ["Service", "Job"])
    for one in made:
        kubernetes_validate.validate(one, version, strict=True)
    spec = made[-1]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", nodes, nodes)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "200Gi", "nvidia.com/gpu": 8}
    assert {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]} == {
        "/checkout": "checkout",
        "/dev/shm": "shm",
    }
    assert {volume["name"]: volume for volume in pod["volumes"]} == {
        "checkout": {"name": "checkout", "persistentVolumeClaim": {"claimName": "work"}},
        "shm": {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
    }
    script = container["command"][-1]
    assert script.startswith("cd /checkout || exit 1\nlog=.work/p/launch/")
    if nodes == 1:
        assert "\npython -m stages.cotrain --profile perceptio-8b --variant full >>" in script
    else:
        name = made[-1]["metadata"]["name"]
        assert (made[0]["metadata"]["name"], pod["subdomain"], made[0]["spec"]["clusterIP"]) == (name, name, "None")
        assert made[0]["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
        for part in (
            "--nnodes=4",
            "--nproc-per-node=gpu",
            "--max-restarts=3",
            f'--rdzv-endpoint="{name}-0.{name}:29500" --rdzv-conf="is_host=$((JOB_COMPLETION_INDEX == 0)),',
        ):
            assert part in script


@pytest.mark.parametrize("version", VERSIONS)
def test_the_nodes_of_a_ray_are_indices_of_one_job_that_ends_with_the_first(job: Job, version: str) -> None:
    pods = Pods(image="registry.example/perceptio:1", claim="work", gpus=1, cpu="8")
    launch = Launch(launcher="kubernetes", nodes=4, pods=pods)
    service, made = manifests(job, ["stages.teacher_depth", "--profile", "p"], launch, pods)
    for one in (service, made):
        kubernetes_validate.validate(one, version, strict=True)
    spec = made["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (3, 0)
    assert "backoffLimit" not in spec, "the failure of one would be that of all"
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore", "FailJob"]
    script = spec["template"]["spec"]["containers"][0]["command"][-1]
    name = made["metadata"]["name"]
    node = f'python -m pipeline.launch.ray_node "$JOB_COMPLETION_INDEX" "{name}-0.{name}:29500" {job.folder}/token "8" '
    assert f"{node}stages.teacher_depth --profile p >>" in script
    assert "torch" not in script


@pytest.mark.parametrize(("cpu", "cores"), [("4", 4), ("500m", 1), ("2500m", 2), ("1.5", 1)])
def test_a_pod_has_no_more_workers_than_the_cores_it_asks_for(job: Job, cpu: str, cores: int) -> None:
    pods = Pods(image="i", claim="c", cpu=cpu)
    made = manifests(job, ["stages.joint_shards"], Launch(launcher="kubernetes", nodes=2, pods=pods), pods)[-1]
    assert f'/token "{cores}" stages.joint_shards' in made["spec"]["template"]["spec"]["containers"][0]["command"][-1]


def test_strict_means_that_an_unknown_key_is_refused(job: Job) -> None:
    pods = Pods(image="i", claim="c")
    (made,) = manifests(job, STAGE, Launch(launcher="kubernetes", pods=pods), pods)
    made["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(made, VERSIONS[0], strict=True)


def test_pods_that_read_from_a_store_get_its_address_and_a_secret_with_the_keys(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERCEPTIO_SHARDS", "{}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    pods = Pods(image="i", claim="c", secret="store")
    (made,) = manifests(job, STAGE, Launch(launcher="kubernetes", pods=pods), pods)
    kubernetes_validate.validate(made, VERSIONS[0], strict=True)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert {"name": "PERCEPTIO_SHARDS", "value": "{}"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert "hidden" not in json.dumps(made)


def test_a_name_is_one_that_kubernetes_takes(job: Job) -> None:
    assert name_of(job) == "perceptio-depth-codebook-a-b-0123456789abcdef"
    long = Job(folder=Path("l") / f"cotrain-{'v' * 60}" / "0123456789abcdef", out=Path("o"))
    assert len(name_of(long)) == 56
    assert name_of(long).endswith("v-0123456789abcdef")


@pytest.fixture
def fake(
    up_to_codebook: FakePipeline, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> FakePipeline:
    """A checkout up to depth_codebook, whose next stage is launched on the stand-in."""
    folder = tmp_path_factory.mktemp("cluster")
    monkeypatch.setenv("PATH", os.pathsep.join([str(fake_kubectl(folder)), os.environ["PATH"]]))
    fake = copy_of(up_to_codebook, tmp_path)
    pods = {"image": "none", "claim": "none", "mount": str(tmp_path), "python": sys.executable}
    machine = {"launch": {"joint_shards": {"launcher": "kubernetes", "pods": pods}}}
    (tmp_path / "machine.yaml").write_text(yaml.safe_dump(machine))
    return fake


def test_a_stage_runs_as_a_job_and_its_output_comes_home(fake: FakePipeline) -> None:
    output = fake.dvc("repro", "-s", "joint_shards")
    assert "submitted the job default/perceptio-joint-shards-" in output
    assert "joint_shards says hello" in output, "the job's log is followed"
    made = json.loads((fake.root / "artifacts/mini/joint_shards/index.json").read_text())
    assert made["knob"] == 1
    fake.behave(joint_shards="fail")
    fake.change("joint_shards", knob=2)
    output = fake.run(sys.executable, "-m", "pipeline.cli", "run", "joint_shards", expect=1)
    assert "no space left for jokes" in output


@pytest.mark.on_request
def test_a_wide_stage_on_several_pods(fake: FakePipeline) -> None:
    """On request for its ten seconds: a Ray of two nodes, as on the stand-in for Slurm."""
    (fake.root / "stages" / "joint_shards.py").write_text(WIDE.replace("SECONDS", "0.05"))
    output = fake.run(sys.executable, "-m", "pipeline.cli", "run", "joint_shards", "--nodes", "2")
    assert output.count("assembles") == 1
    made = (fake.root / "made.log").read_text().splitlines()
    assert sorted(made) == sorted(f"shard-{number} token" for number in range(12))
    assert (fake.root / "artifacts/mini/joint_shards/index.json").is_file()
    assert not list((fake.root / ".work/mini/launch/joint_shards").iterdir())


def test_a_stopped_stage_deletes_its_job(fake: FakePipeline) -> None:
    fake.behave(joint_shards="sleep")
    with fake.start(sys.executable, "-m", "pipeline.launch", "joint_shards") as launcher:
        end = time.monotonic() + 60
        while not (fake.root / "ran.log").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        pid = int((fake.root / "ran.log").read_text().split()[1])
        launcher.send_signal(signal.SIGINT)
        assert gone(pid, within_s=10)
        output, _ = launcher.communicate(timeout=30)
    assert "cancelled the job" in output


def test_pods_are_asked_for(fake: FakePipeline) -> None:
    (fake.root / "machine.yaml").write_text("launch: {joint_shards: {launcher: kubernetes}}\n")
    output = fake.dvc("repro", "-s", "joint_shards", expect=255)
    assert "pods: missing; the launcher kubernetes needs at least their image and claim" in output
