"""kubectl as the launcher uses it, for machines without a cluster: pods are processes of this machine.

``fake_kubectl(folder)`` makes the command in ``folder/bin``; what was created lies in ``folder/jobs``. A container's command
runs as it is, with the checkout at its own place: `Pods.mount` has to be that place.
"""

import sys
from pathlib import Path

_SOURCE = """#!PYTHON
import json, os, pathlib, signal, subprocess, sys, time

jobs = pathlib.Path(JOBS)
verb, arguments = sys.argv[1], sys.argv[2:]


def ended(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


if verb == "create":
    for item in json.load(sys.stdin)["items"]:
        name = item["metadata"]["name"]
        if item["kind"] == "Job":
            if (jobs / f"{name}.json").exists():
                sys.exit(f'Error from server (AlreadyExists): jobs.batch "{name}" already exists')
            (container,) = item["spec"]["template"]["spec"]["containers"]
            pids = []
            for index in range(item["spec"]["completions"]):
                environment = {"PATH": os.environ["PATH"], "JOB_COMPLETION_INDEX": str(index)}
                environment |= {entry["name"]: entry["value"] for entry in container["env"]}
                # There is no headless Service here; both pods are this machine.
                script = container["command"][2].replace(f"{name}-0.{name}:", "localhost:")
                container["command"][2] = script
                out = subprocess.DEVNULL
                pids.append(
                    subprocess.Popen(container["command"], env=environment, stdout=out, stderr=out, start_new_session=True).pid
                )
            (jobs / f"{name}.json").write_text(json.dumps({"pids": pids, "item": item}))
            if "successPolicy" in item["spec"] and os.fork() == 0:  # the job's end, with its first pod's
                for standard in range(3):
                    os.close(standard)
                while not ended(pids[0]):
                    time.sleep(0.1)
                for pid in pids[1:]:
                    os.killpg(pid, signal.SIGKILL)
                os._exit(0)
elif verb == "get":
    path = jobs / f"{arguments[1]}.json"
    if path.exists():
        job = json.loads(path.read_text())
        dead = all(ended(pid) for pid in job["pids"])
        reason = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
        print(json.dumps({"status": {"conditions": [reason]} if dead else {"active": len(job["pids"])}}))
elif verb == "delete":
    path = jobs / f"{arguments[arguments.index('-l') + 1].partition('=')[2]}.json"
    if path.exists():
        for pid in json.loads(path.read_text())["pids"]:
            if not ended(pid):
                os.killpg(pid, signal.SIGKILL)
        path.rename(path.with_suffix(".deleted"))
"""


def fake_kubectl(folder: Path) -> Path:
    """Make the command; the folder to put on the PATH."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    command = folder / "bin" / "kubectl"
    command.write_text(_SOURCE.replace("PYTHON", sys.executable).replace("JOBS", repr(str(folder / "jobs"))))
    command.chmod(0o755)
    return folder / "bin"
