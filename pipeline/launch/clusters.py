"""Which cluster takes a stage's job."""

from pipeline.launch.job import TOGETHER, WIDE, Cluster
from pipeline.launch.kubernetes import Kubernetes
from pipeline.launch.slurm import Slurm
from pipeline.machine import Launch


def cluster_for(stage: str, launch: Launch) -> Cluster | None:
    """The cluster by which a stage runs; None: as a process of this machine.

    Args:
        stage: its name without a variant.
        launch: where it is to run.

    Raises:
        ValueError: this machine cannot submit to the cluster, or a stage that cannot is to run on several nodes or on Ray.
    """
    if launch.launcher == "ray" and stage not in WIDE:
        raise ValueError(f"machine.yaml: launch.{stage}.launcher: ray; allowed for {', '.join(WIDE)}")
    if launch.nodes > 1 and stage not in TOGETHER + WIDE:
        several = ", ".join(TOGETHER + WIDE)
        raise ValueError(f"machine.yaml: launch.{stage}.nodes: {launch.nodes}; allowed is 1, and more for {several}")
    if launch.launcher == "slurm":
        return Slurm()
    return Kubernetes(launch.pods) if launch.launcher == "kubernetes" and launch.pods is not None else None
