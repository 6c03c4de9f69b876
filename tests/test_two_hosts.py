"""Training on two hosts: network namespaces that share a disk, `torchrun` in each, a rank and a host killed on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fake_pipeline import environment
from tiny_checkout import OF_THIS_REPOSITORY, assert_same_training, tiny_checkout, train_here
from two_hosts import hosts, may_make_namespaces

__all__ = ["hosts"]  # the fixture

COTRAIN = ("-m", "stages.cotrain")
STEPS = 12


pytestmark = [
    pytest.mark.on_request,
    pytest.mark.skipif(not may_make_namespaces(), reason="network namespaces need root and iproute2's `ip netns`"),
]


def start(host: str, *, number: int, checkout: Path) -> subprocess.Popen[bytes]:
    """This host's share of the training, as docs/running.md has it; its log is ``host-<number>.log``."""
    options = [
        *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", f"10.77.0.{number}"),
        *("--rdzv-backend", "c10d", "--rdzv-id", "tiny", "--rdzv-endpoint", "10.77.0.1:29400"),
        *("--rdzv-conf", f"is_host={int(number == 1)}"),
    ]
    settings = {
        **OF_THIS_REPOSITORY,
        "GLOO_SOCKET_IFNAME": "wire",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    with (checkout / f"host-{number}.log").open("ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", *options, *COTRAIN],
            cwd=checkout,
            env=environment() | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def wait_for_step(checkout: Path, step: int, *agents: subprocess.Popen[bytes], within_s: float = 900.0) -> None:
    end = time.monotonic() + within_s
    while not any((checkout / ".work").glob(f"tiny/cotrain/*/checkpoints/step-{step:08d}")):
        assert all(agent.poll() is None for agent in agents), logs(checkout)
        assert time.monotonic() < end, logs(checkout)
        time.sleep(0.05)


def logs(checkout: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()[-4000:]}" for path in sorted(checkout.glob("host-*.log")))


def test_a_killed_rank_and_a_killed_host_come_back_and_the_curve_is_that_of_one_host(
    tmp_path: Path, hosts: tuple[str, str]
) -> None:
    settings = {"steps": STEPS, "sharding": "full", "own_codes": 0.5}
    one, two = (tiny_checkout(tmp_path / name, **settings) for name in ("one", "two"))
    train_here(one)

    agents = [start(host, number=number, checkout=two) for number, host in enumerate(hosts, start=1)]
    try:
        wait_for_step(two, 4, *agents)
        (rank,) = psutil.Process(agents[1].pid).children()
        rank.kill()
        wait_for_step(two, 8, *agents)
        for process in [*psutil.Process(agents[1].pid).children(), psutil.Process(agents[1].pid)]:
            process.kill()
        agents[1].wait()
        agents[1] = start(hosts[1], number=2, checkout=two)
        for agent in agents:
            assert agent.wait(timeout=900) == 0, logs(two)
    finally:
        for agent in agents:
            agent.send_signal(signal.SIGTERM)
            agent.wait()
    text = (two / "host-1.log").read_text() + (two / "host-2.log").read_text()
    assert text.count("resuming after step") >= 2, logs(two)
    assert_same_training(one, two)
