"""Prefect's server as a process of this one, on loopback only: for `perceptio ui`, and for a run that finds no other."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from perceptio_core.files import whole
from perceptio_core.tied import tied
from pipeline.settings import answers, server_file
from stages.common import ARTIFACTS, StagePaths

HOST = "127.0.0.1"
CONSOLE_LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
"""The variable by which a process keeps Prefect's lines to itself; not the server, whose lines go to a file."""
_START_WITHIN_S = 600


@contextlib.contextmanager
def serving(*, port: int | None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Prefect's server, up: the address of its API, and its process, which ends with this one.

    Its messages go to a file beside its database.

    Args:
        port: None: any that is free.

    Raises:
        ValueError: it does not start; names the file that says why.
    """
    log = server_file().with_name("run-server.log" if port is None else "server.log")
    port = port or _free_port()
    api = f"http://{HOST}:{port}/api"
    log.parent.mkdir(parents=True, exist_ok=True)
    # The pages ask the address that is set here, whatever the port.
    environment = os.environ | {
        "PREFECT_SERVER_UI_API_URL": api,
        "PREFECT_UI_STATIC_DIRECTORY": str(_pages()),
        CONSOLE_LEVEL: "NOTSET",
    }
    command = tied("prefect", "--no-prompt", "server", "start", "--host", HOST, "--port", str(port))
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for us: there is still something to tell the server
        )
    try:
        end = time.monotonic() + _START_WITHIN_S
        while not answers(api):
            if server.poll() is not None or time.monotonic() > end:
                raise ValueError(f"Prefect's server did not start; {log} says why")
            time.sleep(0.2)
        for report in ARTIFACTS.glob("*/report/report.html"):
            show_report(report.parts[-3])
        yield api, server
    finally:
        server.terminate()
        server.wait()


def show_report(profile: str) -> str:
    """Lay a profile's report among the pages that our server serves, if there is one; its path there."""
    shown = _pages() / "v2" / "reports" / f"{profile}.html"
    report = StagePaths(profile).out("report") / "report.html"
    if report.is_file() and shown.parents[1].is_dir():  # the server's own pages
        shown.parent.mkdir(exist_ok=True)
        with whole(shown) as unfinished:
            shutil.copyfile(report, unfinished)
    return f"/v2/reports/{profile}.html"


def _pages() -> Path:
    return Path(os.environ["PREFECT_HOME"]).absolute() / "pages"


def refuse_a_taken_port(port: int) -> None:
    """Raise ValueError where another program listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server binds: closed connections do not count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} of {HOST} is taken; --port names another ({error})") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
