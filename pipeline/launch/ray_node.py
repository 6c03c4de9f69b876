"""A node of a job that is a Ray: ``python -m pipeline.launch.ray_node NUMBER HOST:PORT TOKEN CORES MODULE ARGUMENT...``.

Number 0 starts the Ray and runs the stage on it; the others join it, again and again, until the job ends. Whoever does not have
the file TOKEN is refused: Ray listens on all of a node's addresses, and whoever may speak to it may run anything.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from perceptio_core.guard import guard
from perceptio_core.tied import tied
from stages.engines import VARIABLE
from stages.on_ray import closed, write_token

NOTICING = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that does not answer is given up after some 15 s; by Ray's own settings, after a minute."""
_AGAIN_S = 2.0
_START_S = 300.0


def main() -> None:
    """Be the node; the first ends with the stage's exit code."""
    number, address, token, cores, *stage = sys.argv[1:]
    guard()
    os.environ |= closed(Path(token)) | NOTICING
    host, _, port = address.rpartition(":")
    if number == "0":
        sys.exit(_first(_resolved(host), port, cores, Path(token), stage))
    while True:
        if Path(token).exists():  # the first has come so far
            subprocess.run(_ray(f"--address={_resolved(host)}:{port}", f"--num-cpus={cores}"), check=False)
        time.sleep(_AGAIN_S)


def _first(host: str, port: str, cores: str, token: Path, stage: list[str]) -> int:
    if not token.exists():  # a job that was put back into the queue has one
        write_token(token)
    head = subprocess.Popen(
        _ray("--head", f"--node-ip-address={host}", f"--port={port}", f"--num-cpus={cores}", "--include-dashboard=false")
    )
    try:
        end = time.monotonic() + _START_S
        while not _answers(host, int(port)):
            if head.poll() is not None or time.monotonic() > end:
                print(f"ray_node: no Ray has come up at {host}:{port}", file=sys.stderr)
                return os.EX_TEMPFAIL
            time.sleep(0.2)
        return _run(stage, {VARIABLE: f"{host}:{port}"})
    finally:
        head.terminate()
        head.wait()


def _run(stage: list[str], environment: Mapping[str, str]) -> int:
    code = subprocess.run(tied(*stage), env=os.environ | environment, check=False).returncode
    return code if code >= 0 else 128 - code  # as a shell has it


def _ray(*options: str) -> list[str]:
    return tied("ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _resolved(host: str) -> str:
    """The address of a host whose name may not be known yet."""
    end = time.monotonic() + _START_S
    while True:
        try:
            return socket.gethostbyname(host)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(_AGAIN_S)


if __name__ == "__main__":
    main()
