"""What is true of this machine alone, from a file that neither git nor DVC tracks: how much runs at once, where, where the
training reads its shards, and where its curves are shown.

``machine.yaml`` beside dvc.yaml, or the file that the variable PERCEPTIO_MACHINE names; without one the defaults hold.
Nothing in it changes what a stage computes, so a change re-runs nothing.
"""

import contextlib
import os
import queue
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from perceptio_core.engine import visible_gpus
from perceptio_core.params.base import Section, read_yaml
from perceptio_core.params.curves import PLACES
from perceptio_core.params.shard_source import ShardSource
from perceptio_core.params.values import SECTIONS

MACHINE_FILE = Path("machine.yaml")
VARIABLE = "PERCEPTIO_MACHINE"


class Limits(Section):
    """How many stages run at once, by what they need (``meta: {needs: ...}`` of a stage in dvc.yaml).

    Attributes:
        gpu: stages that compute with a model, on CPUs too. Above 1, each gets an equal share of the GPUs to itself.
        cpu: all others.
    """

    gpu: int = Field(default=1, ge=1)
    cpu: int = Field(default=2, ge=1)


class Pods(Section):
    """Kubernetes' pods, one a node.

    Attributes:
        image: has what a stage needs: Python with the project's dependencies.
        claim: PersistentVolumeClaim of the volume that holds the checkout, writable from several nodes.
        mount: where the pods have the checkout.
        namespace: of the job.
        python: the interpreter in the image.
        gpus: per pod.
        cpu, memory: per pod, as Kubernetes writes them; memory is the limit as well.
        shared_memory: size of /dev/shm, through which NCCL and loaders talk; part of the memory.
        secret: name of a Secret whose keys become variables of the stage, such as the AWS_ ones of a store of shards.
    """

    image: str
    claim: str
    mount: str = Field(default="/checkout", pattern="^/.+")
    namespace: str = "default"
    python: str = "python"
    gpus: int = Field(default=0, ge=0)
    cpu: str = "4"
    memory: str = "16Gi"
    shared_memory: str = "8Gi"
    secret: str | None = None


class Launch(Section):
    """Where a stage runs.

    Attributes:
        launcher: "local": on this machine. "ray": on this machine, its units of work on a Ray. "slurm": as a job of the cluster
            that this machine submits to. "kubernetes": as one of the cluster that kubectl speaks to.
        address: of the Ray, ``host:port``; "local": one for the stage alone, on this machine.
        nodes: of the job; above 1 for `cotrain`, which trains on all, and for `sources`, `teacher_depth`, `joint_shards` and
            `evaluate`, for which the job starts a Ray.
        processes: per node, where there are several nodes: a number, or "gpu" for one per GPU.
        options: further ones of `sbatch`, such as ``--partition=long`` and ``--gpus-per-node=8``.
        pods: what Kubernetes starts; for this launcher alone.
    """

    launcher: Literal["local", "ray", "slurm", "kubernetes"] = "local"
    address: str = Field(default="local", pattern=r"^(local|[^/\s]+:\d+)$")
    nodes: int = Field(default=1, ge=1)
    processes: Annotated[int, Field(ge=1)] | Literal["gpu"] = "gpu"
    options: tuple[str, ...] = ()
    pods: Pods | None = None

    @model_validator(mode="after")
    def _fits_the_launcher(self) -> Self:
        if self.launcher == "kubernetes" and self.pods is None:
            raise ValueError("pods: missing; the launcher kubernetes needs at least their image and claim")
        if self.launcher in ("local", "ray") and self.nodes > 1:
            raise ValueError(f"nodes: {self.nodes}, but the launcher is {self.launcher}; allowed with slurm and kubernetes")
        if self.launcher != "ray" and "address" in self.model_fields_set and self.address != "local":
            raise ValueError(f"address: {self.address}, but the launcher is {self.launcher}; allowed with ray")
        return self


class Machine(Section):
    """The whole file.

    Attributes:
        limits: how many stages run at once.
        launch: by stage; one that is not named runs here.
        shards: store that `cotrain` reads its shards from; None: they lie below artifacts/.
        curves: what shows the training's curves besides DVCLive's files, as they grow.
    """

    limits: Limits = Limits()
    launch: dict[str, Launch] = Field(default_factory=dict)
    shards: ShardSource | None = None
    curves: Literal["tensorboard", "wandb"] | None = None


def read_machine() -> Machine:
    """This machine's settings.

    Raises:
        ValueError: the file has an unknown key, a wrong type or a refused value, or the named one is missing; says what is
            allowed.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else MACHINE_FILE
    if not path.is_file():
        if named:
            raise ValueError(f"{VARIABLE} names {path}, which is not a file")
        return Machine()
    values = read_yaml(path)
    if unknown := values.keys() - Machine.model_fields.keys():
        raise ValueError(f"{path}: {sorted(unknown)[0]}: unknown key; allowed are {', '.join(Machine.model_fields)}")
    launches = values.get("launch", {})
    if not isinstance(launches, dict) or (unknown := launches.keys() - set(SECTIONS)):
        raise ValueError(f"{path}: launch: expected stages as keys, of {', '.join(SECTIONS)}; got {launches!r}")
    shards, curves = values.get("shards"), values.get("curves")
    if curves is not None and curves not in PLACES:
        raise ValueError(f"{path}: curves: {curves!r}; allowed are {', '.join(PLACES)}")
    return Machine(
        limits=Limits.from_mapping(values.get("limits", {}), where=f"{path}: limits"),
        shards=None if shards is None else ShardSource.from_mapping(shards, where=f"{path}: shards"),
        curves=curves,
        launch={stage: Launch.from_mapping(launch, where=f"{path}: launch.{stage}") for stage, launch in launches.items()},
    )


@contextlib.contextmanager
def launching(stage: str, **changed: Any) -> Iterator[None]:
    """Meanwhile, let this machine's settings launch a stage another way, in every process that starts from here.

    Args:
        stage: its name without a variant.
        changed: fields of `Launch`; the others stay as this machine has them.

    Raises:
        ValueError: a field or value that is not allowed, or the machine's own file is wrong.
    """
    machine = read_machine()
    own = machine.launch.get(stage, Launch()).model_dump(mode="json")
    launch = Launch.from_mapping(own | changed, where=f"launch of {stage}")
    before = os.environ.get(VARIABLE)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(machine.model_copy(update={"launch": machine.launch | {stage: launch}}).model_dump(mode="json"), file)
        file.flush()
        os.environ[VARIABLE] = file.name
        try:
            yield
        finally:
            os.environ.pop(VARIABLE)
            os.environ.update({} if before is None else {VARIABLE: before})


class Slots:
    """The places that running stages take; a stage waits until one of its kind is free."""

    def __init__(self, limits: Limits) -> None:
        """Raises ValueError if fewer GPUs are here than stages that would share them."""
        self._free: dict[str, queue.SimpleQueue[dict[str, str]]] = {}
        for needs, count in limits.model_dump().items():
            shares = _gpu_shares(count) if needs == "gpu" and count > 1 else [{}] * count
            self._free[needs] = queue.SimpleQueue()
            for share in shares:
                self._free[needs].put(share)

    @contextlib.contextmanager
    def taken(self, needs: str) -> Iterator[dict[str, str]]:
        """Take a place; yields what it adds to the stage's environment."""
        place = self._free[needs].get()
        try:
            yield place
        finally:
            self._free[needs].put(place)


def _gpu_shares(count: int) -> list[dict[str, str]]:
    """The GPUs of this machine in `count` equal parts, as CUDA_VISIBLE_DEVICES; without any GPU nothing is to be shared."""
    devices = visible_gpus()
    if not devices:
        return [{} for _ in range(count)]
    if len(devices) < count:
        raise ValueError(f"limits.gpu: {count} stages at once, but {len(devices)} GPUs; allowed are 1 to {len(devices)}")
    size = len(devices) // count
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[part * size : (part + 1) * size])} for part in range(count)]
