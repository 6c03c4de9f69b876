"""A bounded folder of whole shards, brought from a store when a sample of theirs is asked for.

A shard lies in it under its sha256, which was checked before it got that name; until then it has the name of an unfinished
one. The least recently used make room for the next. Any number of threads and processes, of any runs, may share the folder:
one brings a shard while the others that need it wait, and a file that is dropped while it is read stays readable to its
reader. The locks are the kernel's (flock), so a killed process leaves none behind; the folder belongs on a local disk.

What is in the cache decides how fast a sample comes, never which one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perceptio_core.data.shards.remote import RemoteShards, StoreError
from perceptio_core.files import naming
from perceptio_core.params.shard_source import ShardSource

COPIES = 3
"""How often a shard is brought whose bytes come with another checksum each time."""

_GIB = 2**30
_OURS = re.compile(r"[0-9a-f]{64}\.(shard|(?P<coming>\d+)\.unfinished)")  # nothing else in the folder is touched
logger = logging.getLogger(__name__)


class ShardCache:
    """The shards of one set, by way of the cache.

    Args:
        source: store and cache.
        folder: output of the stage `joint_shards`; of its files the index is needed, the shards are not.

    Attributes:
        limit: bytes that it may hold.

    Raises:
        ValueError: the folder has no index, the store does not have its shards, or the cache is too small for one of them.
        StoreError: the store does not answer, or refuses to.
    """

    def __init__(self, source: ShardSource, *, folder: Path) -> None:
        self._remote = RemoteShards(store=source.store, folder=folder)
        self._folder, self.limit = source.cache, int(source.cache_gib * _GIB)
        largest = max(self._remote.shards.values(), key=lambda shard: int(shard["bytes"]))
        if largest["bytes"] > self.limit:
            least = f"{largest['name']} alone takes {largest['bytes'] / _GIB:.3g}"
            raise ValueError(f"cache_gib: {source.cache_gib:.3g}; allowed is no less than the largest shard: {least}")
        if not self._remote.is_whole():
            raise ValueError(f"{self._remote.url}: {folder}'s shards are not there; perceptio shards push {source.store}")
        self._folder.mkdir(parents=True, exist_ok=True)

    def size(self, name: str) -> int:
        """Bytes of a shard."""
        return int(self._remote.shards[name]["bytes"])

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """File descriptor of a shard, to be read with pread; brings the shard if it is not here.

        Raises:
            StoreError: it cannot be had.
        """
        shard = self._remote.shards[name]
        descriptor = self._kept(shard)
        if descriptor is None:
            descriptor = self._brought(shard)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _kept(self, shard: dict[str, Any]) -> int | None:
        """File descriptor of a shard that is here, and now the most recently used."""
        path = self._path(shard)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != shard["bytes"]:
            logger.warning("%s: not %d bytes long; dropped", path, shard["bytes"])
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))  # by itself the kernel would take a clock of some milliseconds
        return descriptor

    def _brought(self, shard: dict[str, Any]) -> int:
        """File descriptor of a shard that this or another process brings now."""
        unfinished = self._folder / f"{shard['sha256']}.{shard['bytes']}.unfinished"
        while True:
            lock = os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_at(lock, unfinished):  # finished or dropped while we waited
                    if (descriptor := self._kept(shard)) is not None:
                        return descriptor
                    continue
                if (descriptor := self._kept(shard)) is not None:  # finished before we came
                    unfinished.unlink()
                    return descriptor
                self._make_room()
                with naming(unfinished):
                    self._bring(shard, lock)
                unfinished.rename(self._path(shard))
                fcntl.flock(lock, fcntl.LOCK_UN)  # it outlives the close below, for its duplicate shares it
                return os.dup(lock)
            finally:
                os.close(lock)

    def _bring(self, shard: dict[str, Any], descriptor: int) -> None:
        """Write a shard's bytes, and see that they are the right ones."""
        start = time.monotonic()
        for _ in range(COPIES):
            digest = hashlib.sha256()
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.seek(0)
                file.truncate()
                for block in self._remote.blocks(shard["name"]):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() == shard["sha256"]:
                os.fsync(descriptor)  # or a power cut could leave the name without the bytes
                seconds, mib = time.monotonic() - start, shard["bytes"] / 2**20
                logger.info("%s: %.1f MiB in %.1f s, %.1f MiB/s", shard["name"], mib, seconds, mib / seconds)
                return
            logger.warning("%s/%s: came with another sha256 than the index has", self._remote.url, shard["name"])
        raise StoreError(
            f"{self._remote.url}/{shard['name']}: came {COPIES} times with another sha256 than {shard['sha256']}, which the "
            "index has; remove it there and push it again"
        )

    def _make_room(self) -> None:
        """Drop the least recently used shards, until those that are here and those on their way keep within the limit."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held, used = [], 0
            for path in list(self._folder.iterdir()):
                name = _OURS.fullmatch(path.name)
                with contextlib.suppress(FileNotFoundError):  # finished or dropped meanwhile
                    if name and name["coming"]:
                        used += 0 if _drop_if_left_behind(path) else int(name["coming"])
                    elif name:
                        facts = path.stat()
                        held.append((facts.st_mtime_ns, facts.st_size, path))
                        used += facts.st_size
            for _, size, path in sorted(held):
                if used <= self.limit:
                    break
                path.unlink(missing_ok=True)
                used -= size

    def _path(self, shard: dict[str, Any]) -> Path:
        return self._folder / f"{shard['sha256']}.shard"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _drop_if_left_behind(path: Path) -> bool:
    """Remove an unfinished shard that nobody is bringing any more; whether it was one."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):  # else it has just been finished
            path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
