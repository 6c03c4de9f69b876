"""What a command leaves running when it is killed: a marked environment tells all that it started, whoever started what."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from perceptio_core.guard import WHOLE_ENVIRONMENT

_MARK = "PERCEPTIO_TEST_MARK"


class Marked:
    """A command that leads a group of processes of its own, and all that comes from it.

    Args:
        command: to start.
        folder: to start it in; its lines go to ``marked.log`` there.
        environment: of the command.
    """

    def __init__(self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self.log = folder / "marked.log"
        with self.log.open("wb") as log:
            self.driver = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment, **WHOLE_ENVIRONMENT, _MARK: self._mark},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self) -> dict[int, str]:
        """Process id -> command line of all that run now, zombies apart."""
        found = {}
        entry = f"{_MARK}={self._mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if entry in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def wait_for(self, text: str, *, count: int = 1, within_s: float = 240.0) -> None:
        """Wait until so many processes besides the driver have the text in their command line."""
        end = time.monotonic() + within_s
        while time.monotonic() < end and self.driver.poll() is None:
            if sum(text in line for pid, line in self.running().items() if pid != self.driver.pid) >= count:
                return
            time.sleep(0.002)
        raise AssertionError(f"{text!r} did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def kill(self, *, group: bool) -> None:
        """End the driver alone, or its whole group, as by ``kill -9``."""
        (os.killpg if group else os.kill)(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def survivors(self, *, within_s: float = 60.0) -> dict[int, str]:
        """What still runs after a while; it is ended then."""
        end = time.monotonic() + within_s
        while (left := self.running()) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left
