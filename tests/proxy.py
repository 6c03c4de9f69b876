"""A proxy on loopback before a test's server, with the faults of servers under load and of bad networks."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

STATUSES = ("500", "503")
FAULTS = (*STATUSES, "reset", "twice", "cut", "short", "corrupt", "stall", "slow")
"""What befalls a request: it is answered with a status or not at all, handed on twice; or its answer breaks off, is shorter or
another than it should be, falls silent for three seconds and breaks off, or comes in small parts.
"""


class Proxy(ThreadingHTTPServer):
    """Hands requests on to the server `behind`, websockets as well. It keeps a store's checksums to itself, for not every store
    has them.

    Attributes:
        behind: host and port.
        url: where it answers.
        requests: method and path of all.
        refusal: the body of a 500 or 503.
    """

    daemon_threads, block_on_close = True, False
    refusal = b""

    def __init__(self, behind: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []

    def fault(self, method: str, path: str) -> str | None:
        """The one of `FAULTS` that befalls this request; None: none."""
        raise NotImplementedError

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is none of our business."""


P = TypeVar("P", bound=Proxy)


@contextlib.contextmanager
def serving(proxy: P) -> Iterator[P]:
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _any(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        if "upgrade" in self.headers.get("Connection", "").lower():
            self._tunnel()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self.command, path)
        if fault == "reset":
            self.close_connection = True
            return
        if fault in STATUSES:
            self._answer(int(fault), {}, self.server.refusal, None)
            return
        if fault == "twice":
            self._asked(body)
        self._answer(*self._asked(body), fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815

    def _asked(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection(*self.server.behind, timeout=120)) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: str | None) -> None:
        length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        if fault == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "short":
            body = body[: len(body) // 2]
            length = str(len(body))
        self.send_response_only(status)
        for name, value in headers.items():
            if not name.lower().startswith(("content-length", "transfer-encoding", "connection", "x-amz-checksum")):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(3.0 if fault == "stall" else 0)
            self.close_connection = True
        elif fault == "slow":
            for start in range(0, len(body), 2**13):
                self.wfile.write(body[start : start + 2**13])
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(body)

    def _tunnel(self) -> None:
        """A websocket: bytes both ways."""
        self.close_connection = True
        with socket.create_connection(self.server.behind) as far:
            lines = [self.requestline, *(f"{name}: {value}" for name, value in self.headers.items()), "", ""]
            far.sendall("\r\n".join(lines).encode())
            threading.Thread(target=_pump, args=(far, self.connection), daemon=True).start()
            _pump(self.connection, far)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
