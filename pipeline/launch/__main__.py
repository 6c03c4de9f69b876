"""The command of every stage in dvc.yaml: ``python -m pipeline.launch STAGE --profile P [--variant V]``.

The command is the same wherever the stage runs, so that moving a stage to a cluster re-runs nothing.
"""

import os
import sys

from perceptio_core.params.shard_source import VARIABLE
from pipeline.launch.clusters import cluster_for
from pipeline.launch.job import run_as_job
from pipeline.machine import Launch, read_machine
from stages.common import die_with_parent


def main() -> None:
    """Become the stage, or follow the job that runs it; ends with the stage's exit code."""
    die_with_parent()  # `exec` keeps the tie: a stage imports for seconds before it comes to tie itself
    stage, *arguments = sys.argv[1:]
    try:
        machine = read_machine()
        if machine.shards is not None:
            os.environ[VARIABLE] = machine.shards.model_dump_json()
        launch = machine.launch.get(stage, Launch())
        cluster = cluster_for(stage, launch)
        if cluster is None:
            os.execv(sys.executable, [sys.executable, "-m", f"stages.{stage}", *arguments])
        sys.exit(run_as_job(cluster, stage, arguments, launch))
    except ValueError as error:
        sys.exit(f"launch: {error}")


if __name__ == "__main__":
    main()
