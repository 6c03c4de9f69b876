"""A proxy before Prefect's server that answers chosen calls as a server under heavy load has been seen to."""

import contextlib
import http.client
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Api:
    """Where it answers, and what it answers other than the server would.

    Attributes:
        fails: a pattern of "METHOD path" of the calls that get the status below in the place of an answer.
        status: of these; 0: the connection ends without an answer, and "twice" hands them on twice, as a client does that
            got no answer to the first.
        failed: the calls that did.
    """

    url: str
    fails: str = "(?!)"
    status: int | str = 503
    failed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def unsteady_api(server: str) -> Iterator[Api]:
    """Stand before the server at ``http://HOST:PORT/api``."""
    upstream = urlsplit(server)
    assert upstream.hostname is not None
    address = (upstream.hostname, upstream.port or 80)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            if "upgrade" in self.headers.get("Connection", "").lower():
                self.tunnel()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = f"{self.command} {self.path}"
            if re.search(api.fails, call):
                api.failed.append(call)
                if api.status == "twice":
                    self.asked(body)
                elif api.status == 0:
                    self.close_connection = True
                    return
                else:
                    self.answer(int(api.status), [], b'{"detail": "database is locked"}')
                    return
            self.answer(*self.asked(body))

        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815

        def asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(*address, timeout=120)
            with contextlib.closing(connection):
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def tunnel(self) -> None:
            """A websocket: bytes both ways."""
            self.close_connection = True
            with socket.create_connection(address) as far:
                lines = [self.requestline, *(f"{name}: {value}" for name, value in self.headers.items()), "", ""]
                far.sendall("\r\n".join(lines).encode())
                back = threading.Thread(target=pump, args=(far, self.connection), daemon=True)
                back.start()
                pump(self.connection, far)

        def log_message(self, *_: object) -> None:
            pass

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads, proxy.block_on_close = True, False
    api = Api(f"http://127.0.0.1:{proxy.server_port}{upstream.path}")
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield api
    finally:
        proxy.shutdown()
        proxy.server_close()
