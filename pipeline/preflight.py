"""The look at every input that a run's stages will read, before the first of them starts."""

from __future__ import annotations

from perceptio_core.params.profile import Profile
from perceptio_core.params.values import SECTIONS
from pipeline.dag import Plan
from pipeline.launch.clusters import cluster_for
from pipeline.machine import Launch, Machine
from stages.inputs import faults


def look_ahead(plan: Plan, *, profile: Profile, machine: Machine) -> None:
    """Open the inputs of the first stage that is to run and of all after it.

    Where `sources` is a cluster's job, the data may lie where only the cluster sees them: the stage looks itself.

    Raises:
        ValueError: some cannot be read; a line each.
    """
    to_run = {name.partition("@")[0] for name in plan.asked}
    wanted = {node.name.partition("@")[0] for node in plan.stages}
    first = min((SECTIONS.index(stage) for stage in to_run), default=len(SECTIONS))
    stages = [stage for stage in SECTIONS[first:] if stage in wanted]
    if cluster_for("sources", machine.launch.get("sources", Launch())) is not None:
        stages = [stage for stage in stages if stage not in ("sources", "evaluate")]
    if found := list(faults(profile, stages=stages)):
        lines = "\n  ".join(found)
        raise ValueError(f"profile {profile.name} cannot be run: {len(found)} of its inputs cannot be read\n  {lines}")
