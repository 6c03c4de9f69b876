"""An S3 store on loopback for the tests (moto, or Ceph's object gateway), a proxy before it that does what bad networks do,
and shards to put there.
"""

import contextlib
import http.client
import logging
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

import ceph_gateway
from entries import entry
from perceptio_core.data.shards import remote as store
from perceptio_core.data.shards.entry import Annotation, Entry
from perceptio_core.data.shards.tars import write_index, write_shard

BUCKET = "perceptio-tests"
Fault = Literal["500", "503", "reset", "cut", "short", "corrupt", "stall", "slow"]
_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>Please try again.</Message></Error>"


STORES = ["moto", pytest.param("ceph", marks=pytest.mark.rgw)]
"""What a fixture that has a store is parametrised with: the tests run on Ceph's gateway too, where they are asked to."""


@contextlib.contextmanager
def s3_store(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Proxy"]:
    """A store with an empty bucket behind a proxy; the AWS_ variables name it, and waiting is short.

    Args:
        kind: one of `STORES`.
        folder: an empty one, for the store's files.
        monkeypatch: sets the variables.
    """
    with moto() if kind == "moto" else ceph_gateway.gateway(folder) as address, serving(address) as proxy:
        use(monkeypatch, endpoint=proxy.endpoint)
        yield proxy


@contextlib.contextmanager
def moto() -> Iterator[tuple[str, int]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # What an earlier server of this process took in is still there.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    try:
        yield host, port
    finally:
        server.stop()


def use(monkeypatch: pytest.MonkeyPatch, *, endpoint: str) -> None:
    """Let everything here and in subprocesses use a store, with a new bucket, and without much waiting."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ceph_gateway.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ceph_gateway.SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(store, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(store, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setattr(store, "BLOCK_BYTES", 2**16)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # a client keeps the endpoint that it has found first
    fsspec.filesystem("s3").mkdir(BUCKET)


class Proxy(ThreadingHTTPServer):
    """Forwards requests to a store. It has faults for the reading of shards and of DVC's files: each of `faults` once, then
    `always`. It keeps the store's own checksums to itself, as not every store has them.

    Attributes:
        reads: how often each shard was asked for, by its name; whole or a block of it.
        requests: method and path of all.
    """

    daemon_threads = True

    def __init__(self, behind: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.reads: Counter[str] = Counter()
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> Fault | None:
        with self.lock:
            self.reads[path.rpartition("/")[2]] += 1
            return self.faults.pop(0) if self.faults else self.always

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is none of our business."""


@contextlib.contextmanager
def serving(behind: tuple[str, int]) -> Iterator[Proxy]:
    proxy = Proxy(behind)
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

    def _forward(self) -> None:
        given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        data = self.command == "GET" and (path.endswith(".tar") or "/files/md5/" in path)
        fault = self.server.fault(path) if data else None
        if fault == "reset":
            self.close_connection = True
            return
        if fault in ("500", "503"):
            body = _ERROR.format(code={"500": "InternalError", "503": "SlowDown"}[fault]).encode()
            self._answer(int(fault), {"Content-Type": "application/xml"}, body, fault)
            return
        connection = http.client.HTTPConnection(*self.server.behind, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(given)
            answer = connection.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read(), fault)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None) -> None:
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

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815


def write_joint_shards(folder: Path, *, shards: int = 6, samples: int = 8) -> None:
    """Shards of noise, about 100 KB each, and one for validation: samples of two tasks."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    parts = []
    for shard in range(shards + 1):
        split = "train" if shard < shards else "val"
        made = []
        for number in range(samples):
            said = Annotation(
                record_id=f"{shard}/{number}",
                task=("conversation", "depth_map")[number % 2],
                source="noise",
                turns=[("What?", "Noise.")],
            )
            picture = Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            codes = [int(code) for code in draw.integers(0, 6, 4)]
            made.append(entry(picture, said, image_key=f"noise/{shard}/{number}", depth_codes=codes))
        name = f"{split}-{shard if split == 'train' else 0:05d}"
        parts.append(write_shard(folder, name=name, split=split, entries=made, quarantine=[], records={}))
    write_index(folder, parts, quarantine=[], manifest={}, about={})


def write_large_shard(folder: Path, *, size: int) -> None:
    """One shard whose only sample has an "image" of so many bytes."""
    folder.mkdir(parents=True)
    image = np.random.default_rng(1).bytes(size)
    said = Annotation(record_id="r", task="conversation", source="noise", turns=[])
    large = Entry(image=image, extension="png", image_key="k", width=1, height=1, depth_codes=[], annotations=[said])
    part = write_shard(folder, name="train-00000", split="train", entries=[large], quarantine=[], records={})
    write_index(folder, [part], quarantine=[], manifest={}, about={})
