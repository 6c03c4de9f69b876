"""A server of files that does what servers on the way to a data set have been seen to do."""

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(kw_only=True)
class Served:
    """A file, and how it is served.

    Attributes:
        content: its bytes.
        cuts: of each answer, after how many bytes it breaks off; None, or no entry: it does not.
        stalls_s: how long it then stays silent before the connection ends.
        statuses: of each answer; 0, or no entry: the file.
        ranges: whether a part is given where one is asked for.
        etag: the server's mark; "" gives none.
        announced: the length that is announced in the place of the true one; -1 announces none.
        headers: further ones.
    """

    content: bytes
    cuts: list[int | None] = field(default_factory=list)
    stalls_s: float = 0.0
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str = '"v1"'
    announced: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """What is served, by path, and what was asked: (path, Range, If-Range)."""

    url: str
    files: dict[str, Served] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)


@contextlib.contextmanager
def unsteady_server() -> Iterator[Server]:
    """Serve on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
            server.asked.append((self.path, asked, condition))
            served = server.files.get(self.path)
            self.close_connection = True
            if served is None:
                self.answer(404, b"", {"Content-Length": "0"})
                return
            if status := (served.statuses.pop(0) if served.statuses else 0):
                self.answer(status, b"", {"Content-Length": "0"} | served.headers)
                return
            content, start, total = served.content, 0, len(served.content)
            headers = dict(served.headers) | ({"ETag": served.etag} if served.etag else {})
            if asked and served.ranges and (condition is None or condition == served.etag):
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
                if start >= total:
                    self.answer(416, b"", headers | {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
                    return
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            announced = total - start if served.announced is None else served.announced
            if announced >= 0:
                headers["Content-Length"] = str(announced)
            cut = served.cuts.pop(0) if served.cuts else None
            self.answer(206 if start else 200, content[start:][:cut], headers)
            if cut is not None and served.stalls_s:
                self.wfile.flush()
                threading.Event().wait(served.stalls_s)

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    threaded = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threaded.daemon_threads, threaded.block_on_close = True, False
    server = Server(f"http://127.0.0.1:{threaded.server_port}")
    threading.Thread(target=threaded.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        threaded.shutdown()
        threaded.server_close()
