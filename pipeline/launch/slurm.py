"""Slurm: a stage as a batch job. A node needs Python's environment at the same path as this machine."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.launch.job import Job, State, python_command, told_by
from pipeline.machine import Launch

_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}
_PASSING = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}  # no fault of the stage: it goes on where it stood when run again

_SCRIPT = """#!/bin/sh
cd {checkout} || exit 1
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER PORT
srun --kill-on-bad-exit=1 {command}
code=$?
{keeping}exit $code
"""


class Slurm:
    """The cluster that this machine submits to.

    Raises:
        ValueError: Slurm's commands are not here.
    """

    def __init__(self) -> None:
        if shutil.which("sbatch") is None:
            raise ValueError("machine.yaml: launcher: slurm, but there is no sbatch on the PATH of this machine")

    def submit(self, job: Job, stage: Sequence[str], launch: Launch) -> str:  # noqa: D102 (see the protocol)
        command = python_command(stage, launch, python=sys.executable, rank="$SLURM_NODEID", master="$MASTER", port="$PORT")
        if launch.nodes > 1:
            command = shlex.join(["sh", "-c", f"exec {command}"])  # the variables are each node's own
        script = job.folder / "job.sh"
        script.write_text(
            _SCRIPT.format(checkout=shlex.quote(str(Path.cwd())), command=command, keeping=job.keeping()), encoding="utf-8"
        )
        options = ["--parsable", f"--job-name={job.name}", f"--output={job.log}", "--open-mode=append"]
        shape = [f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1"]
        # What DVC tells a stage that it starts itself is not for one on another machine.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        answer = told_by("sbatch", *options, *shape, *launch.options, str(script), environment=environment)
        return answer.split(";")[0].strip()

    def alive(self, job: Job) -> str | None:  # noqa: D102
        return next(iter(told_by("squeue", "--noheader", f"--name={job.name}", "--format=%A").split()), None)

    def cancel(self, job: Job) -> None:  # noqa: D102
        told_by("scancel", f"--name={job.name}")

    def state(self, job: Job) -> State:  # noqa: D102
        listed = told_by("squeue", "--noheader", f"--name={job.name}", "--states=all", "--format=%T").split()
        told = next((state for state in listed if state in _ALIVE), listed[-1] if listed else "")
        return State(told=told, alive=told in _ALIVE, passing=told in _PASSING)
