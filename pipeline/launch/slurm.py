"""Slurm: a stage as a batch job. A node needs Python's environment at the same path as this machine.

A job goes back into the queue under its number where it has to make room for another, or loses one of the nodes that train
together; then the stage goes on where it stood. A process of a training that dies is started again inside the job. A Ray goes
on without a node that it loses, unless it is the first.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.launch.job import Job, State, python_command, together, told_by
from pipeline.machine import Launch

_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}
_PASSING = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}  # no fault of the stage: it goes on where it stood when run again

# A job that has to make room gets SIGTERM and some time to end. Slurm counts one that does end as failed, and puts it back into
# the queue only if told so.
_MAKING_ROOM = """if [ $code -ne 0 ] && scontrol show job "$SLURM_JOB_ID" | grep -q "PreemptTime=[0-9]"; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
fi
"""

# The address of a node is the one by which Slurm itself reaches it.
_SCRIPT = """#!/bin/sh
cd {checkout} || exit 1
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
FIRST=$(scontrol show node "$FIRST" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
PORT=$((20000 + SLURM_JOB_ID % 10000))
export FIRST PORT
srun --kill-on-bad-exit=1 {command}
code=$?
{keeping}exit $code
"""

# The first node runs the stage, and ends the job with it, whatever the others do.
_RAY = """#!/bin/sh
cd {checkout} || exit 1
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
FIRST=$(scontrol show node "$FIRST" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
PORT=$((20000 + SLURM_JOB_ID % 10000))
export FIRST PORT
PERCEPTIO_NODE=1 srun --no-kill --nodes={others} --ntasks={others} --relative=1 {command} > {log}-others 2>&1 &
PERCEPTIO_NODE=0 {command}
code=$?
kill $!
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
        ray = launch.nodes > 1 and not together(stage)
        # SLURM_NODEID counts the nodes of a step, and a Ray's other nodes are a step of their own.
        where = {"rank": "PERCEPTIO_NODE" if ray else "SLURM_NODEID", "endpoint": "$FIRST:$PORT", "cores": "$(nproc)"}
        command = python_command(job, stage, launch, python=sys.executable, **where)
        if launch.nodes > 1:
            command = shlex.join(["sh", "-c", f"exec {command}"])  # the variables are each node's own
        text = (_RAY if ray else _SCRIPT).format(
            checkout=shlex.quote(str(Path.cwd())),
            command=command,
            keeping=_MAKING_ROOM + job.keeping(),
            others=launch.nodes - 1,
            log=shlex.quote(str(job.log)),
        )
        options = ["--parsable", f"--job-name={job.name}", "--open-mode=append", "--requeue", f"--output={job.log}"]
        options += [f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1"]
        options += ["--no-kill"] if ray else []
        script = job.folder / "job.sh"
        script.write_text(text, encoding="utf-8")
        # What DVC tells a stage that it starts itself is not for one on another machine.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        answer = told_by("sbatch", *options, *launch.options, str(script), environment=environment)
        return answer.split(";")[0].strip()

    def alive(self, job: Job) -> str | None:  # noqa: D102
        return next(iter(told_by("squeue", "--noheader", f"--name={job.name}", "--format=%F").split()), None)

    def cancel(self, job: Job) -> None:  # noqa: D102
        told_by("scancel", f"--name={job.name}")

    def state(self, job: Job) -> State:  # noqa: D102
        lines = told_by("squeue", "--noheader", f"--name={job.name}", "--states=all", "--format=%F %T").splitlines()
        known = [(int(number), state) for number, state in map(str.split, lines)]
        # Slurm remembers for some minutes what an earlier attempt of this name came to.
        listed = [state for number, state in known if number == max(known)[0]]
        told = listed[-1] if listed else ""
        return State(told=told, alive=told in _ALIVE, passing=told in _PASSING)
