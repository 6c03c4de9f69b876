"""Two hosts on this machine: network namespaces that share a disk."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest


def may_make_namespaces() -> bool:
    """Whether this process may give a network of its own to another."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"perceptio-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False).returncode == 0


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2 at their interfaces `wire`, that reach nothing but each other."""
    one, two = names = tuple(f"perceptio-{os.getpid()}-{number}" for number in (1, 2))
    commands = [f"netns add {name}" for name in names]
    commands += [f"link add wire netns {one} type veth peer name wire netns {two}"]
    for number, name in enumerate(names, start=1):
        commands += [f"-n {name} addr add 10.77.0.{number}/24 dev wire"]
        commands += [f"-n {name} link set {link} up" for link in ("wire", "lo")]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
        yield one, two
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run(["ip", "netns", "del", name], check=True)
