"""Slurm's commands as the launcher uses them, for machines without Slurm: jobs are processes of this machine.

``fake_slurm(folder)`` makes the commands in ``folder/bin``; what a job is lies in ``folder/jobs``.
"""

import sys
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")

_SOURCE = """#!PYTHON
import itertools, json, os, pathlib, signal, subprocess, sys, time

jobs = pathlib.Path(JOBS)
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
options = dict(part.removeprefix("--").partition("=")[::2] for part in arguments if part.startswith("--"))
rest = [part for part in arguments if not part.startswith("--")]


def state(job):
    if job["state"] == "RUNNING":
        try:
            stat = pathlib.Path(f"/proc/{job['pid']}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            stat = "Z"
        return "COMPLETED" if stat == "Z" else "RUNNING"
    return job["state"]


def named():
    found = [json.loads(path.read_text()) | {"path": str(path)} for path in sorted(jobs.glob("*.json"))]
    return [job for job in found if job["name"] == options["name"]]


if name == "sbatch":
    if "refuse" in options:
        sys.exit("sbatch: error: invalid partition specified")
    number = str(len(list(jobs.glob("*.json"))) + 1)
    # The script makes a port of the number of the job, and tests run side by side.
    base = os.environ | {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]", "FAKE_NODES": options["nodes"]}
    with open(options["output"], "ab") as log:
        process = subprocess.Popen(["/bin/sh", rest[0]], stdout=log, stderr=log, env=base, start_new_session=True)
    job = {"id": number, "name": options["job-name"], "pid": process.pid, "state": "RUNNING", "options": options}
    (jobs / f"{number}.json").write_text(json.dumps(job))
    print(f"{number};cluster")
elif name == "squeue":
    for job in named():
        if state(job) == "RUNNING" or options.get("states") == "all":
            print(options["format"].replace("%F", str(job["id"])).replace("%T", state(job)))
elif name == "scancel":
    for job in named():
        if state(job) == "RUNNING":
            os.killpg(job["pid"], signal.SIGKILL)
            path = pathlib.Path(job.pop("path"))
            path.write_text(json.dumps(job | {"state": "CANCELLED"}))
elif name == "scontrol":
    print("NodeAddr=localhost " if rest[:2] == ["show", "node"] else "localhost")
elif name == "srun":
    command = list(itertools.dropwhile(lambda part: part.startswith("--"), arguments))
    count = int(options.get("nodes", os.environ["FAKE_NODES"]))
    nodes = [subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(n)}) for n in range(count)]  # of the step
    signal.signal(signal.SIGTERM, lambda *_: [node.kill() for node in nodes])
    sys.exit(max(node.wait() for node in nodes))
"""


def fake_slurm(folder: Path) -> Path:
    """Make the commands; the folder to put on the PATH."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in COMMANDS:
        command = folder / "bin" / name
        command.write_text(_SOURCE.replace("PYTHON", sys.executable).replace("JOBS", repr(str(folder / "jobs"))))
        command.chmod(0o755)
    return folder / "bin"
