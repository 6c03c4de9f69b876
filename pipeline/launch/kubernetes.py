"""Kubernetes: a stage as an Indexed Job, a pod per node, by `kubectl` and its current context.

The checkout lies on a volume that this machine mounts as well, at any path; in the pods it is at `Pods.mount`. Several pods
find the first by a headless Service. Where they train together, one that fails ends the job; where they are a Ray, it ends with
the stage, which runs in the first, and a pod that dies is made again, up to three times. A pod that the cluster evicts or
preempts is made again as well, and the stage goes on where it stood; of those that train together, not the first, which keeps
the meeting point.
"""

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perceptio_core.params.curves import VARIABLE as CURVES
from perceptio_core.params.shard_source import VARIABLE
from pipeline.launch.job import Job, State, python_command, together, told_by
from pipeline.machine import Launch, Pods

_PORT = 29500
_LONGEST = 56  # of a name: a pod's host name, of at most 63 characters, adds its index
_FORGET_AFTER_S = 7 * 24 * 3600
_LABEL = "app.kubernetes.io/name"

_DISRUPTED = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
_ENDS_WITH_THE_FIRST = {
    "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    "backoffLimitPerIndex": 3,
    "maxFailedIndexes": 0,
}
# A pod that was killed (137: SIGKILL, as when its memory is short) is made again; only the stage ends with another code.
_STAGE_FAILED = {"action": "FailJob", "onExitCodes": {"containerName": "stage", "operator": "NotIn", "values": [137]}}

# Paths are relative to the checkout, which lies elsewhere in the pods than on this machine.
_SCRIPT = """cd {checkout} || exit 1
log={log}; [ "$JOB_COMPLETION_INDEX" = 0 ] || log="$log-$JOB_COMPLETION_INDEX"
{command} >> "$log" 2>&1
code=$?
{keeping}exit $code
"""


class Kubernetes:
    """The cluster of kubectl's current context.

    Args:
        pods: what the pods of the stage's job are like.

    Raises:
        ValueError: there is no kubectl.
    """

    def __init__(self, pods: Pods) -> None:
        if shutil.which("kubectl") is None:
            raise ValueError("machine.yaml: launcher: kubernetes, but there is no kubectl on the PATH of this machine")
        self._pods = pods

    def submit(self, job: Job, stage: Sequence[str], launch: Launch) -> str:  # noqa: D102 (see the protocol)
        self.cancel(job)  # one that has ended keeps its name
        listed = {"apiVersion": "v1", "kind": "List", "items": manifests(job, stage, launch, self._pods)}
        told_by("kubectl", "create", "-f", "-", given=json.dumps(listed))
        return f"{self._pods.namespace}/{name_of(job)}"

    def alive(self, job: Job) -> str | None:  # noqa: D102
        return f"{self._pods.namespace}/{name_of(job)}" if self.state(job).alive else None

    def cancel(self, job: Job) -> None:  # noqa: D102
        selected = ["-n", self._pods.namespace, "-l", f"{_LABEL}={name_of(job)}"]
        told_by("kubectl", "delete", "jobs,services", *selected, "--cascade=foreground", "--wait=true")

    def state(self, job: Job) -> State:  # noqa: D102
        answer = told_by("kubectl", "get", "job", name_of(job), "-n", self._pods.namespace, "--ignore-not-found", "-o", "json")
        if not answer.strip():
            return State(told="", alive=False, passing=False)
        status = json.loads(answer).get("status", {})
        true = {one["type"]: one.get("reason", "") for one in status.get("conditions", []) if one["status"] == "True"}
        for condition in ("Complete", "Failed"):
            if condition in true:
                return State(told=f"{condition} {true[condition]}".strip(), alive=False, passing=False)
        return State(told="Running", alive=True, passing=False)


def name_of(job: Job) -> str:
    """A name that Kubernetes takes: lower case, digits and hyphens, the hash of the inputs whole."""
    start, _, inputs = job.name.lower().replace("_", "-").rpartition("-")
    return f"{start[: _LONGEST - len(inputs) - 1].rstrip('-')}-{inputs}"


def _cores(pods: Pods) -> int:
    """Whole cores that a pod has asked for, at least 1."""
    return max(1, int(pods.cpu.removesuffix("m")) // 1000 if pods.cpu.endswith("m") else int(float(pods.cpu)))


def manifests(job: Job, stage: Sequence[str], launch: Launch, pods: Pods) -> list[dict[str, Any]]:
    """The Indexed Job and, for several nodes, the headless Service by which they find the first.

    Args:
        job: its files lie below the present folder, the checkout.
        stage: module and arguments.
        launch: how many nodes, and processes on each.
        pods: image, volume and resources.
    """
    name, here = name_of(job), Path.cwd()
    folder, out = (Path(os.path.relpath(path, here)) for path in (job.folder, job.out))
    inside = Job(folder=folder, out=out)
    several, ray = launch.nodes > 1, launch.nodes > 1 and not together(stage)
    where = {"rank": "JOB_COMPLETION_INDEX", "endpoint": f"{name}-0.{name}:{_PORT}", "cores": str(_cores(pods))}
    command = python_command(inside, stage, launch, python=pods.python, **where)
    keeping = inside.keeping()
    if several:
        keeping = f'[ "$JOB_COMPLETION_INDEX" = 0 ] || exit $code\n{keeping}'
    script = _SCRIPT.format(
        checkout=shlex.quote(pods.mount), log=shlex.quote(str(inside.log)), command=command, keeping=keeping
    )
    meta = {"name": name, "namespace": pods.namespace, "labels": {_LABEL: name}}
    resources: dict[str, Any] = {"requests": {"cpu": pods.cpu, "memory": pods.memory}, "limits": {"memory": pods.memory}}
    if pods.gpus:
        resources["limits"]["nvidia.com/gpu"] = pods.gpus
    environment = {"HOME": "/tmp"} | {name: os.environ[name] for name in (VARIABLE, CURVES) if name in os.environ}
    container: dict[str, Any] = {
        "name": "stage",
        "image": pods.image,
        "command": ["/bin/sh", "-c", script],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "checkout", "mountPath": pods.mount},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if pods.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": pods.secret}}]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "checkout", "persistentVolumeClaim": {"claimName": pods.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory}},
        ],
    }
    if several:
        spec["subdomain"] = name
    indexed = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "completionMode": "Indexed",
            "completions": launch.nodes,
            "parallelism": launch.nodes,
            **(_ENDS_WITH_THE_FIRST if ray else {"backoffLimit": 0}),
            "podFailurePolicy": {"rules": [_DISRUPTED, *([_STAGE_FAILED] if ray else [])]},
            "ttlSecondsAfterFinished": _FORGET_AFTER_S,
            "template": {"metadata": {"labels": {_LABEL: name}}, "spec": spec},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        # The pods look for the first one before it is ready.
        "spec": {"clusterIP": "None", "selector": {_LABEL: name}, "publishNotReadyAddresses": True},
    }
    return [service, indexed] if several else [indexed]
