"""A Ray of two hosts: network namespaces that share a disk; a worker, a node, the network, the driver and the head are lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fake_pipeline import REPOSITORY, environment
from perceptio_core.files import whole
from stages.on_ray import closed
from two_hosts import hosts, may_make_namespaces

__all__ = ["hosts"]  # the fixture
pytestmark = [
    pytest.mark.on_request,
    pytest.mark.skipif(not may_make_namespaces(), reason="network namespaces need root and iproute2's `ip netns`"),
]
HEAD = "10.77.0.1:29600"
UNITS = 40

STAGE = """
import os, socket, sys, time
from functools import partial
from perceptio_core.files import whole
from stages.common import StagePaths
from stages.shards import ShardWork

def maker(out):
    def make(name):
        with open("made.log", "a") as log:
            print(name, os.getpid(), os.readlink("/proc/self/ns/net"), time.time(), file=log)
        with open("seconds") as told:
            time.sleep(float(told.read()))
        with whole(out / name) as unfinished:
            unfinished.write_text(name * 100)
        return name
    return make

if __name__ == "__main__":
    shards = {f"shard-{number:02d}": 1 for number in range(40)}
    with ShardWork(StagePaths("t"), "joint_shards", "key") as work:
        work.make(shards, partial(maker, work.out), keep=lambda path, name: path.write_text(name), label="shards")
        (work.out / "index").write_text("".join(work.part(name).read_text() for name in shards))
        work.publish()
"""


class Hosts:
    """Two hosts and what runs on them; a node is a process group of its own, as a job's task is."""

    def __init__(self, names: tuple[str, str], checkout: Path) -> None:
        self.names, self.checkout = names, checkout
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        (checkout / "stages_of_test.py").write_text(STAGE)
        self.take(0.5)
        self.environment = environment() | {"PYTHONPATH": f"{checkout}:{REPOSITORY}", "OMP_NUM_THREADS": "1"}

    def take(self, seconds: float) -> None:
        """How long a unit takes from now on."""
        with whole(self.checkout / "seconds") as unfinished:
            unfinished.write_text(str(seconds))

    def start(self, number: int) -> None:
        """Node 0 with the stage, or node 1."""
        if number == 0:
            # The hosts see each other's processes here, and Ray would take the other's raylet for a Ray of this host's.
            self.wait(lambda: not any(process.name() == "raylet" for process in self.processes(1)))
        command = [sys.executable, "-m", "pipeline.launch.ray_node", str(number), HEAD, "token", "1", "stages_of_test"]
        self.nodes[number] = self.run(number, command, f"node-{number}.log")

    def run(self, number: int, command: list[str], log: str, **more: str) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.names[number], *command]
        with (self.checkout / log).open("ab") as stream:
            return subprocess.Popen(
                inside, cwd=self.checkout, env=self.environment | more, stdout=stream, stderr=stream, start_new_session=True
            )

    def processes(self, number: int) -> list[psutil.Process]:
        """All that runs on a host."""
        told = subprocess.run(["ip", "netns", "pids", self.names[number]], capture_output=True, text=True, check=True).stdout
        return [psutil.Process(int(pid)) for pid in told.split() if psutil.pid_exists(int(pid))]

    def lose(self, number: int) -> None:
        """Kill all that runs on a host, as when it loses its power."""
        for process in self.processes(number):
            process.kill()
        self.nodes[number].wait()

    def made(self) -> list[list[str]]:
        """Units that were begun: name, process, network, time."""
        log = self.checkout / "made.log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def networks(self, *, since: float = 0.0) -> set[str]:
        """Where units were begun."""
        return {network for _, _, network, begun in self.made() if float(begun) > since}

    def said(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in self.checkout.glob("*.log"))

    def wait(self, condition: Callable[[], object], *, within_s: float = 300.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def both_at_work(self, *, since: float = 0.0) -> bool:
        return len(self.networks(since=since)) == 2

    def content(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.checkout / "artifacts/t/joint_shards").iterdir()}


@pytest.fixture
def two(tmp_path: Path, hosts: tuple[str, str]) -> Iterator[Hosts]:
    made = Hosts(hosts, tmp_path)
    made.start(0)
    made.start(1)
    try:
        made.wait(made.both_at_work)
        yield made
    finally:
        for number in (0, 1):
            for process in made.processes(number):
                process.kill()
        for node in made.nodes.values():
            node.wait()


WHOLE = {f"shard-{number:02d}": f"shard-{number:02d}" * 100 for number in range(UNITS)}
WHOLE |= {"index": "".join(sorted(WHOLE))}


def doubled(two: Hosts) -> float:
    """Seconds between the two beginnings of the unit that was begun twice."""
    begun: dict[str, list[float]] = {}
    for name, _, _, when in two.made():
        begun.setdefault(name, []).append(float(when))
    return max(max(times) - min(times) for times in begun.values())


def ends_well(two: Hosts) -> None:
    two.wait(lambda: two.nodes[0].poll() is not None)
    assert two.nodes[0].returncode == 0, two.said()
    assert two.content() == WHOLE
    assert not list((two.checkout / ".work/t/joint_shards").iterdir())


def test_a_lost_worker_costs_one_unit(two: Hosts) -> None:
    worker = int(two.made()[-1][1])
    os.kill(worker, signal.SIGKILL)
    ends_well(two)
    assert len(two.made()) <= UNITS + 1
    print(f"its unit was begun again {doubled(two):.1f} s after it was begun first")


def test_a_lost_node_costs_what_it_was_at_and_is_used_when_it_comes_back(two: Hosts) -> None:
    two.take(5)
    two.lose(1)
    lost = time.time()
    two.wait(lambda: len(two.networks(since=lost)) == 1)
    two.start(1)
    two.wait(lambda: two.both_at_work(since=lost + 1))
    print(f"a node that was started again was used {time.time() - lost:.0f} s after its loss")
    two.take(0.2)
    ends_well(two)
    assert len(two.made()) <= UNITS + 1
    print(f"its unit was begun again {doubled(two):.1f} s after it was begun first")


def test_a_cut_network_costs_what_the_node_was_at(two: Hosts) -> None:
    subprocess.run(["ip", "-n", two.names[1], "link", "set", "wire", "down"], check=True)
    ends_well(two)
    assert len(two.made()) <= UNITS + 2
    print(f"its unit was begun again {doubled(two):.1f} s after it was begun first")


def test_a_killed_driver_goes_on_where_it_stood(two: Hosts) -> None:
    two.wait(lambda: len(list((two.checkout / ".work/t/joint_shards/key/parts").glob("*.json"))) > 8)
    (driver,) = [
        process
        for process in two.processes(0)
        if process.cmdline()[1:3] == ["-m", "perceptio_core.tied"] and ("stages_of_test" in process.cmdline())
    ]
    driver.kill()
    two.nodes[0].wait(60)
    assert two.nodes[0].returncode == 128 + signal.SIGKILL, two.said()
    parts = len(list((two.checkout / ".work/t/joint_shards/key/parts").glob("*.json")))
    again = time.time()
    two.start(0)
    ends_well(two)
    assert len([one for one in two.made() if float(one[3]) > again]) == UNITS - parts


def test_a_lost_head_ends_the_driver_and_the_same_command_goes_on(two: Hosts) -> None:
    (head,) = [process for process in two.processes(0) if process.name() == "gcs_server"]
    head.kill()
    lost = time.monotonic()
    two.nodes[0].wait(180)
    print(f"the driver ended after {time.monotonic() - lost:.0f} s with {two.nodes[0].returncode}")
    assert two.nodes[0].returncode != 0
    for process in two.processes(0):
        process.kill()
    two.start(0)
    ends_well(two)


def test_a_stranger_is_refused(two: Hosts) -> None:
    """A node and a driver without the token, or with another, on the second host."""
    two.take(5)  # strangers, of whom each brings Ray, may take a minute
    (two.checkout / "other").write_text("0" * 64)
    node = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={HEAD}"]
    driver = [sys.executable, "-c", f"import ray; ray.init('{HEAD}')"]
    strangers = {
        two.checkout / log: two.run(1, command, log, **more)
        for command, name in ((node, "node"), (driver, "driver"))
        for more, log in (({}, f"{name}-without.log"), (closed(two.checkout / "other"), f"{name}-with-another.log"))
    }
    for log in strangers:
        two.wait(lambda log=log: "Unauthenticated" in log.read_text() or "AuthenticationError" in log.read_text())
    assert two.nodes[0].poll() is None, "the stage was at work all the while"
    for stranger in strangers.values():
        assert stranger.poll() != 0
        stranger.kill()
        stranger.wait()
    token = (two.checkout / "token").read_text()
    lines = [process.cmdline() for number in (0, 1) for process in two.processes(number)]
    assert len(lines) > 8
    assert not [line for line in lines if any(token in part for part in line)], "in no argument"
    two.take(0.2)
    ends_well(two)
    for log in two.checkout.glob("*.log"):
        assert token not in log.read_text()
    assert (two.checkout / "token").stat().st_mode & 0o777 == 0o600
