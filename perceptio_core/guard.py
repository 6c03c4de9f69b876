"""A guard for all that a process starts, at first or second hand: when that process ends, however, the guard ends the rest.

For those whose children start others that are tied to nobody (`perceptio_core.tied`), as Ray's do: some of them look for a
minute for whom to tell that the rest is gone. What is started inherits a mark in its environment, by which the guard knows it,
and nothing else, of whatever user of this machine, has the same.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

_MARK = "PERCEPTIO_GUARDED"
WHOLE_ENVIRONMENT = {"SPT_NOENV": "1"}
"""Keeps setproctitle, by which Ray's processes name themselves, from writing over the environment that the kernel shows."""
_LATE_S = 1.0  # what was being started when its parent was ended gets its environment so much later, at most
_LOOK_EVERY_S = 0.05


def guard() -> None:
    """Have all that this process starts from now on end when it has ended. Does nothing on other systems than Linux."""
    if sys.platform != "linux":
        return
    mark = secrets.token_hex(16)
    end, _ = os.pipe()  # no child inherits the other end, which the kernel closes with this process
    unmarked = {name: value for name, value in os.environ.items() if name != _MARK}
    # A session of its own: what is sent to the group of this process does not end it.
    subprocess.Popen(
        [sys.executable, "-m", "perceptio_core.guard", mark],
        stdin=end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=unmarked,
        start_new_session=True,
    )
    os.close(end)
    os.environ |= {_MARK: mark} | WHOLE_ENVIRONMENT


def _marked(mark: str) -> list[int]:
    """The process ids of all that have the mark."""
    entry, found = f"{_MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or one that has just ended
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def main() -> None:
    """Wait until who holds the pipe has ended; then end all that has the mark."""
    sys.stdin.buffer.read()
    until = time.monotonic() + _LATE_S
    while time.monotonic() < until:
        for pid in (found := _marked(sys.argv[1])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if found:  # one of them may just have started another
            until = time.monotonic() + _LATE_S
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    main()
