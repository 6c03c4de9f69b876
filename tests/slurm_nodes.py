"""A Slurm cluster of two emulated nodes, `n1` and `n2`, on loopback alone; needs Debian's packages, and root.

It has two partitions: a job of `high` takes the nodes from those of `low`, which go back into the queue.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PACKAGES = "slurm-wlm munge"
NODES = ("n1", "n2")
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge.socket,cred_expire=10
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool-%n
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=6
KillWait=5
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why there can be no such cluster here; None if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install --no-install-recommends {PACKAGES}"
    return None if os.geteuid() == 0 else "Slurm's daemons start jobs as their users only for root"


class SlurmNodes:
    """The running cluster. Slurm's commands find it by the variable SLURM_CONF.

    Attributes:
        configuration: what SLURM_CONF has to be.
    """

    def __init__(self, top: Path) -> None:
        """Start it with its files below the empty folder `top`."""
        self._top, self.configuration = top, top / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._lost: list[psutil.Process] = []
        (top / "state").mkdir()
        key = top / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        own = ["socket", "pid-file", "log-file", "seed-file"]
        files = [f"--{name}={top / 'munge'}.{name.partition('-')[0]}" for name in own]
        self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}", *files)
        wait_until((top / "munge.socket").exists)
        host = socket.gethostname().partition(".")[0]
        self.configuration.write_text(_CONFIGURATION.format(host=host, top=top, ports=_free_ports(3)))
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
        for name in NODES:
            self.start_node(name)

    def start_node(self, name: str) -> None:
        """Let a node come up."""
        self._end_lost()
        self._start(name, "slurmd", "-D", "-N", name, "-f", str(self.configuration))

    def lose_node(self, name: str) -> None:
        """Let a node fall silent with all that runs there, as when its power fails."""
        ran = self.processes(SLURMD_NODENAME=name)
        steps = {parent for process in ran for parent in process.parents() if parent.name() == "slurmstepd"}
        self._lost += [psutil.Process(self._daemons.pop(name).pid), *steps, *ran]
        for process in self._lost:
            process.suspend()

    def processes(self, **variables: str) -> list[psutil.Process]:
        """Those of jobs that have such variables in their environment."""
        wanted = {"SLURM_CONF": str(self.configuration), **variables}.items()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if "SLURM_JOB_ID" in environment and wanted <= environment.items():
                    found.append(process)
        return found

    def stop(self) -> None:
        """End all."""
        self._lost += self.processes()
        self._end_lost()
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            daemon.wait()

    def _end_lost(self) -> None:
        while self._lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._lost.pop().kill()

    def _start(self, name: str, *command: str) -> None:
        with (self._top / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(command, stdout=log, stderr=log)


@contextlib.contextmanager
def slurm_nodes(top: Path) -> Iterator[SlurmNodes]:
    """The cluster, and its end."""
    nodes = SlurmNodes(top)
    try:
        yield nodes
    finally:
        nodes.stop()


def wait_until(condition: Callable[[], object], *, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
