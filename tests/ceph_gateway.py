"""A Ceph cluster of one monitor, one store in memory and one object gateway, on loopback alone; needs Debian's packages."""

import contextlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = "ceph-common ceph-mon ceph-osd radosgw"
KEY, SECRET = "perceptio", "of-the-tests"
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}]
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
mon data = {top}/mon
mon allow pool size one = true
mon max pg per osd = 1000
osd data = {top}/osd
osd objectstore = memstore
memstore device bytes = 536870912
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
run dir = {top}
admin socket = {top}/$name.asok
log file = {top}/$name.log
rgw data = {top}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway}
"""


@contextlib.contextmanager
def gateway(top: Path) -> Iterator[tuple[str, int]]:
    """Start the cluster with its files below `top`; yields where the gateway listens, which knows `KEY` and `SECRET`."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install --no-install-recommends {PACKAGES}")
    monitor, port = _free_port(), _free_port()
    (top / "ceph.conf").write_text(_CONFIGURATION.format(fsid=uuid.uuid4(), top=top, monitor=monitor, gateway=port))
    fsid = next(line.split()[-1] for line in (top / "ceph.conf").read_text().splitlines() if line.startswith("fsid"))
    with contextlib.ExitStack() as stack:

        def call(*command: str) -> None:
            ended = subprocess.run(
                [command[0], "-c", str(top / "ceph.conf"), *command[1:]],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"

        def start(*command: str) -> None:
            log = stack.enter_context((top / f"{command[0]}.out").open("w"))
            daemon = subprocess.Popen([command[0], "-c", str(top / "ceph.conf"), "-f", *command[1:]], stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)

        address = f"[v2:127.0.0.1:{monitor}]"
        subprocess.run(
            ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(top / "monmap")],
            check=True,
            capture_output=True,
        )
        call("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(top / "monmap"))
        start("ceph-mon", "-i", "a")
        disk = str(uuid.uuid4())
        call("ceph", "osd", "new", disk)
        (top / "osd").mkdir()
        call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        start("ceph-osd", "-i", "0")
        start("radosgw", "-n", "client.rgw")
        create = ["user", "create", "--uid=tests", "--display-name=tests", f"--access-key={KEY}", f"--secret-key={SECRET}"]
        call("radosgw-admin", *create)
        _wait_for(port)
        yield "127.0.0.1", port


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < end, "the gateway does not answer"
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
