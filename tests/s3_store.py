"""An S3 store on loopback for the tests (moto, or Ceph's object gateway) behind a proxy, and shards to put
there.
"""

import contextlib
import logging
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

import ceph_gateway
import proxy
from entries import entry
from perceptio_core.data.shards import remote as store
from perceptio_core.data.shards.entry import Annotation, Entry
from perceptio_core.data.shards.tars import write_index, write_shard

BUCKET = "perceptio-tests"
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
    with moto() if kind == "moto" else ceph_gateway.gateway(folder) as address, proxy.serving(Proxy(address)) as before:
        use(monkeypatch, endpoint=before.url)
        yield before


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


class Proxy(proxy.Proxy):
    """It has faults for the reading of shards and of DVC's files: each of `faults` once, then `always`.

    Attributes:
        reads: how often each shard was asked for, by its name; whole or a block of it.
    """

    refusal = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Please try again.</Message></Error>"

    def __init__(self, behind: tuple[str, int]) -> None:
        super().__init__(behind)
        self.faults: list[str] = []
        self.always: str | None = None
        self.reads: Counter[str] = Counter()
        self.lock = threading.Lock()

    def fault(self, method: str, path: str) -> str | None:
        if method != "GET" or not (path.endswith(".tar") or "/files/md5/" in path):
            return None
        with self.lock:
            self.reads[path.rpartition("/")[2]] += 1
            return self.faults.pop(0) if self.faults else self.always


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
