"""Prefect's server behind a proxy that answers chosen calls as a server under heavy load has been seen to."""

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from proxy import Proxy, serving


class Api(Proxy):
    """The proxy.

    Attributes:
        api: the address of the API behind it.
        fails: a pattern of "METHOD path" of the calls that `fate` befalls.
        fate: one of the proxy's faults.
        failed: these calls.
    """

    refusal = b'{"detail": "database is locked"}'

    def __init__(self, server: str, *, fails: str, fate: str) -> None:
        upstream = urlsplit(server)
        assert upstream.hostname is not None
        super().__init__((upstream.hostname, upstream.port or 80))
        self.api = self.url + upstream.path
        self.fails, self.fate = fails, fate
        self.failed: list[str] = []

    def fault(self, method: str, path: str) -> str | None:
        call = f"{method} {path}"
        if re.search(self.fails, call) is None:
            return None
        self.failed.append(call)
        return self.fate


@contextlib.contextmanager
def unsteady_api(server: str, *, fails: str, fate: str) -> Iterator[Api]:
    """Stand before the server whose API is at ``http://HOST:PORT/api``."""
    with serving(Api(server, fails=fails, fate=fate)) as api:
        yield api
