"""Joint shards on an S3-compatible store: where they lie there, and how they get there and back over a poor network.

A set of shards lies below ``<store>/<id>/`` under the names that it has in the folder of `joint_shards`. The id is a hash of
its ``index.json``, which names every shard with its sha256: sets of several profiles share a store, and none is ever
overwritten. The index comes last, so a set without one is not whole and is not used.

Endpoint and credentials are those of every AWS tool: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_PROFILE, ``~/.aws/config``. Needs ``s3fs``, which the extra ``s3`` brings, and so does DVC with S3.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from perceptio_core.data.shards.tars import INDEX, SAMPLES
from perceptio_core.params.shard_source import STORE_URL
from perceptio_core.progress import track

T = TypeVar("T")

ATTEMPTS = 8
"""Of one request, each after a wait that is drawn between 0 and a bound; the bounds double from the first to the longest."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
BLOCK_BYTES = 16 * 2**20
"""What one request brings, and what a connection that is cut costs at most."""

_JITTER = random.SystemRandom()  # the seeded generators belong to the training
logger = logging.getLogger(__name__)


class StoreError(OSError):
    """A store that does not give or take what it should; names the object and says how often it was tried."""


class RemoteShards:
    """One set of shards on a store. Threads and processes may share it.

    Args:
        store: ``s3://bucket[/prefix]``.
        folder: output of the stage `joint_shards`; of its files the index is needed, the shards are not.

    Attributes:
        url: where the set lies, without a slash at the end.
        shards: by name {name, samples, bytes, sha256}, as the index has them.

    Raises:
        ValueError: the store is none, or the folder has no index.
    """

    def __init__(self, *, store: str, folder: Path) -> None:
        if not re.match(STORE_URL, store):
            raise ValueError(f"{store}: not a store; allowed is s3://BUCKET[/PREFIX]")
        try:
            content = (folder / INDEX).read_bytes()
            self.shards: dict[str, dict[str, Any]] = {shard["name"]: shard for shard in json.loads(content)["shards"]}
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder}: not the output of joint_shards: {error}") from error
        self._folder = folder
        self.url = f"{store.rstrip('/')}/{hashlib.sha256(content).hexdigest()[:16]}"

    def is_whole(self) -> bool:
        """Whether the store has all of the set.

        Raises:
            StoreError: it does not answer, or refuses to.
        """
        return self._facts(INDEX) is not None

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a shard, in blocks of `BLOCK_BYTES`, as many as the index says; whether they are right is not checked.

        Raises:
            StoreError: a block cannot be had; after `ATTEMPTS` where another can help.
        """
        url, size = f"{self.url}/{name}", self.shards[name]["bytes"]
        store = _filesystem()
        for start in range(0, size, BLOCK_BYTES):
            end = min(start + BLOCK_BYTES, size)

            def read(start: int = start, end: int = end) -> bytes:
                block: bytes = store.cat_file(url, start=start, end=end)
                if len(block) != end - start:
                    raise OSError(f"{len(block)} of the {end - start} bytes from {start} on came")
                return block

            yield _patiently(read, what=f"{url}: reading")

    def push(self) -> None:
        """Bring the whole set to the store; what is there with the same checksum stays. A killed one goes on where it stood.

        Raises:
            ValueError: a local shard is absent or not as the index says.
            StoreError: the store does not take a file.
        """
        for shard in track(self.shards.values(), total=len(self.shards), label=f"to {self.url}", unit="shards"):
            self._put(shard["name"], shard["sha256"])
        self._put(SAMPLES, None)
        self._put(INDEX, None)

    def _put(self, name: str, expected: str | None) -> None:
        path = self._folder / name
        try:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read; run joint_shards again ({error})") from error
        if expected not in (None, sha256):
            raise ValueError(f"{path}: its sha256 is not the one in {INDEX}; run joint_shards again")
        if self._facts(name) == (path.stat().st_size, sha256):
            return
        url, store = f"{self.url}/{name}", _filesystem()

        def write() -> None:
            store.put_file(str(path), url, chunksize=2 * BLOCK_BYTES, max_concurrency=2, Metadata={"sha256": sha256})

        _patiently(write, what=f"{url}: writing")

    def _facts(self, name: str) -> tuple[int, str | None] | None:
        """Size of an object and the sha256 that it was written with; None if there is none."""
        bucket, _, key = f"{self.url}/{name}".removeprefix("s3://").partition("/")
        store = _filesystem()

        def head() -> tuple[int, str | None] | None:
            try:
                told = store.call_s3("head_object", Bucket=bucket, Key=key)
            except FileNotFoundError:
                return None
            return told["ContentLength"], told["Metadata"].get("sha256")

        return _patiently(head, what=f"{self.url}/{name}: asking for it")


def teach_webdataset() -> None:
    """Let plain webdataset open ``s3://`` addresses in this process, and in those that it forks; by itself it cannot."""
    import fsspec
    from webdataset.gopen import gopen_schemes

    # By blocks, each a request of its own: the store would cut a stream that a slow reader leaves waiting.
    gopen_schemes["s3"] = lambda url, mode, _: fsspec.filesystem("s3").open(url, mode, block_size=BLOCK_BYTES)


def _filesystem() -> Any:
    """s3fs, which gives each process and thread a client of its own, and leaves the retries to us."""
    import fsspec  # not at the top: it takes a while, and shards on a local disk do without

    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S, "retries": {"total_max_attempts": 1}}
    filesystem = fsspec.filesystem("s3", config_kwargs=limits, use_listings_cache=False)
    filesystem.retries = 1
    return filesystem


def _patiently(action: Callable[[], T], *, what: str) -> T:
    """Do something with the store, and again while that can help.

    Not by tenacity: its waits draw from Python's own generator, whose draws belong to the training.

    Raises:
        StoreError: it did not work out; names `what`, the number of attempts and the last cause.
    """
    from botocore.exceptions import NoCredentialsError
    from s3fs.core import S3_RETRYABLE_ERRORS

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (FileNotFoundError, PermissionError, NoCredentialsError) as error:
            raise StoreError(f"{what} failed: {type(error).__name__}: {error}") from error
        except (OSError, *S3_RETRYABLE_ERRORS) as error:
            cause = f"{type(error).__name__}: {error}"
            if attempt == ATTEMPTS:
                raise StoreError(f"{what} failed {ATTEMPTS} times, the last time with {cause}") from error
            wait = _JITTER.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)))
            logger.warning("%s failed (%d of at most %d times): %s; again in %.1f s", what, attempt, ATTEMPTS, cause, wait)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")
