"""A command on a terminal of its own, as a person has it."""

import contextlib
import os
import pty
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass(frozen=True)
class Shown:
    """What was seen.

    Attributes:
        code: the exit code.
        lines: all that was written, line by line, each as often as it was drawn.
        after: the lines after Ctrl-C was pressed.
        seconds: from there to the command's end.
    """

    code: int
    lines: list[str]
    after: list[str]
    seconds: float


def on_terminal(*command: str, folder: Path, environment: Mapping[str, str], press_after: str | None = None) -> Shown:
    """Run a command to its end; `press_after`: Ctrl-C is pressed once when this has been written, and two seconds are over."""
    ours, theirs = pty.openpty()
    set_size = {"COLUMNS": "110", "LINES": "30", "TERM": "xterm"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, **set_size},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: _take(0),
    )
    os.close(theirs)
    seen, pressed, at = b"", None, None
    with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
        while data := os.read(ours, 65536):
            seen += data
            if press_after is not None and at is None and press_after.encode() in seen:
                at = time.monotonic() + 2
            if at is not None and pressed is None and time.monotonic() > at:
                pressed = (len(seen), time.monotonic())
                os.write(ours, b"\x03")
    code = process.wait()
    end = time.monotonic()
    os.close(ours)
    return Shown(
        code=code,
        lines=_lines(seen),
        after=_lines(seen[pressed[0] :]) if pressed else [],
        seconds=end - pressed[1] if pressed else 0.0,
    )


def _take(descriptor: int) -> None:
    """Make the terminal the one that Ctrl-C of comes from."""
    import fcntl
    import signal
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _lines(seen: bytes) -> list[str]:
    text = _ESCAPES.sub("", seen.decode(errors="replace"))
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
