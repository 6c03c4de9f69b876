"""The command of every stage in dvc.yaml: ``python -m pipeline.launch STAGE [--variant V]``.

The command is the same wherever the stage runs, so that moving a stage to a cluster re-runs nothing.
"""

import json
import os
import sys
import time
from pathlib import Path

from perceptio_core.tied import tie

_LOCKS = Path(".dvc/tmp/rwlock")
_NOBODY = 0


def main() -> None:
    """Become the stage, or follow the job that runs it; ends with the stage's exit code."""
    if "DVC_STAGE" in os.environ:
        tie(_dvc())  # before all that is slow to import; the stage that this process becomes keeps the tie
    from perceptio_core.params.curves import VARIABLE as CURVES
    from perceptio_core.params.shard_source import VARIABLE
    from pipeline.launch.clusters import cluster_for
    from pipeline.launch.job import run_as_job
    from pipeline.machine import Launch, read_machine
    from stages.engines import VARIABLE as RAY

    stage, *arguments = sys.argv[1:]
    try:
        machine = read_machine()
        if machine.shards is not None:
            os.environ[VARIABLE] = machine.shards.model_dump_json()
        if machine.curves is not None:
            os.environ[CURVES] = machine.curves
        launch = machine.launch.get(stage, Launch())
        cluster = cluster_for(stage, launch)
        if launch.launcher == "ray":
            os.environ[RAY] = launch.address
        if cluster is None:
            os.execv(sys.executable, [sys.executable, "-m", f"stages.{stage}", *arguments])
        sys.exit(run_as_job(cluster, stage, arguments, launch))
    except ValueError as error:
        sys.exit(f"launch: {error}")


def _dvc() -> int:
    """The process id of the `dvc` that started this process; `_NOBODY` if it has ended since.

    DVC leaves a stage's command running when it is killed itself, and clears its lock, so that a second copy could start
    beside the first. It does not say who it is, but as long as a stage runs, its file of locks names the process that has them.
    """
    parent = os.getppid()
    for _ in range(50):
        try:
            locks = json.loads(_LOCKS.read_text(encoding="utf-8"))["write"].values()
        except (ValueError, KeyError):  # another `dvc` writes it at this moment
            time.sleep(0.05)
            continue
        return parent if parent in {lock["pid"] for lock in locks} else _NOBODY
    raise ValueError(f"{_LOCKS}: not as DVC writes it")


if __name__ == "__main__":
    main()
