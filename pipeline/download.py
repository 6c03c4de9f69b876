"""One file over HTTP: resumed after a cut, of the published size and checksum, or not there at all.

Own code, since no library at hand does both: pooch and torch.hub verify but begin anew after a cut, fsspec and requests only
transfer, and huggingface_hub (which does both) knows only its own hub. `httpx` is what that, and Prefect, speak HTTP with.

Unfinished, a file is ``<name>.part``; ``<name>.part.json`` beside it says from which address it is, and by which mark (ETag or
date) the server tells whether the rest would still fit. Without such a mark or a checksum a file is begun anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from perceptio_core.progress import Transfer, amount, track

_CHUNK = 1 << 20
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_TRIES = 5  # without a byte more than the best one had
_LONGEST_PAUSE_S = 60.0
_FIRST_PAUSE_S = 1.0
_TIMEOUT = httpx.Timeout(60.0)


class DownloadError(ValueError):
    """A file cannot be had from an address; says why in a sentence."""


class _CutError(Exception):
    """A transfer ended early, or the server is in trouble: another try may go on."""

    def __init__(self, reason: str, *, pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file as it was published.

    Attributes:
        urls: addresses of the same bytes, tried in this order.
        size: bytes; None where it is not known.
        digest: "md5:..." or "sha256:..."; None where it is not known.
    """

    urls: Sequence[str]
    size: int | None
    digest: str | None


def client() -> httpx.Client:
    """What `fetch` speaks through: follows redirects, and takes proxies and certificates from the environment."""
    return httpx.Client(
        follow_redirects=True, timeout=_TIMEOUT, headers={"User-Agent": "perceptio", "Accept-Encoding": "identity"}
    )


def fetch(wanted: Wanted, path: Path, *, http: httpx.Client, progress: Transfer) -> None:
    """Bring a file to `path`; what is there of it already is not fetched again.

    Raises:
        DownloadError: no address gives it; a sentence for each.
        OSError: it cannot be written.
    """
    if path.is_file():
        progress.add(path.stat().st_size, moved=False)
        return
    faults = []
    for url in wanted.urls:
        try:
            _Download(wanted, url, path, http, progress).run()
            return
        except DownloadError as error:
            faults.append(str(error))
    raise DownloadError("; ".join(faults))


class _Download:
    """The download of a file from one address."""

    def __init__(self, wanted: Wanted, url: str, path: Path, http: httpx.Client, progress: Transfer) -> None:
        self._wanted, self._url, self._path, self._http, self._progress = wanted, url, path, http, progress
        self._part, self._about = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        self._counted = 0

    def run(self) -> None:
        """Try until it is there and whole; raises DownloadError."""
        best, failures = -1, 0
        while True:
            try:
                self._transfer()
                break
            except (_CutError, httpx.TransportError) as error:
                reached = self._size()
                failures = 0 if reached > best else failures + 1
                best = max(best, reached)
                if failures >= _TRIES:
                    reason = str(error) or type(error).__name__
                    raise DownloadError(
                        f"{self._url}: broke off {_TRIES} times after {amount(reached)} ({reason}); try again later"
                    ) from error
                pause = error.pause_s if isinstance(error, _CutError) else 0.0
                time.sleep(min(_LONGEST_PAUSE_S, pause or _FIRST_PAUSE_S * 2**failures))
        self._verify()
        self._part.replace(self._path)
        self._about.unlink(missing_ok=True)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.is_file() else 0

    def _transfer(self) -> None:
        have, mark = self._begun()
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and mark:
            headers["If-Range"] = mark
        with self._http.stream("GET", self._url, headers=headers) as answer:
            _refuse(answer, self._url)
            total = self._total(answer, have)
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if total == have:
                    return self._count(have, moved=False)
                self._forget()
                raise _CutError("the server has no such range")
            if answer.status_code == httpx.codes.OK:
                have = 0
            self._expect(total, have)
            self._note(answer, total)
            self._count(have, moved=False)
            with self._part.open("ab" if have else "wb") as stream:
                for chunk in answer.iter_raw():  # as they come: what waits for a whole chunk is lost in a cut
                    have += len(chunk)
                    if total is not None and have > total:
                        self._forget()
                        raise DownloadError(f"{self._url}: sends more than the {total:,} bytes that it announced")
                    stream.write(chunk)
                    self._count(have)
        if total is not None and have < total:
            raise _CutError(f"{have:,} of {total:,} bytes came")
        return None

    def _total(self, answer: httpx.Response, have: int) -> int | None:
        """Bytes of the whole file, as the answer says."""
        if answer.status_code == httpx.codes.OK:
            length = answer.headers.get("Content-Length", "")
            return int(length) if length.isdecimal() else None
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code == httpx.codes.PARTIAL_CONTENT and (found is None or found[1] is None or int(found[1]) != have):
            self._forget()
            raise _CutError("the server gave another range than it was asked for")
        return int(found[3]) if found is not None and found[3] != "*" else None

    def _expect(self, total: int | None, have: int) -> None:
        if total is None:
            return
        if self._wanted.size is None:
            self._progress.expect(total - self._counted_total)
            self._counted_total = total
        elif total != self._wanted.size:
            raise DownloadError(f"{self._url}: has {total:,} bytes; published are {self._wanted.size:,}")
        free = shutil.disk_usage(self._path.parent).free
        if total - have > free:
            raise DownloadError(
                f"{self._url}: {amount(total - have)} are to come, free are {amount(free)} in {self._path.parent}"
            )

    _counted_total = 0

    def _count(self, have: int, *, moved: bool = True) -> None:
        self._progress.add(have - self._counted, moved=moved)
        self._counted = have

    def _begun(self) -> tuple[int, str | None]:
        """How much is there that may be gone on with, and the server's mark of it."""
        try:
            about: dict[str, Any] = json.loads(self._about.read_text(encoding="utf-8"))
            same = about["url"] == self._url and (about["mark"] is not None or self._wanted.digest is not None)
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            self._forget()
            return 0, None
        return self._size(), about["mark"]

    def _note(self, answer: httpx.Response, total: int | None) -> None:
        etag = answer.headers.get("ETag", "")
        mark = (
            etag if etag.startswith('"') else answer.headers.get("Last-Modified")
        )  # a weak ETag is no promise of the same bytes
        unfinished = self._about.with_name(f"{self._about.name}.new")
        unfinished.write_text(json.dumps({"url": self._url, "mark": mark, "total": total}), encoding="utf-8")
        unfinished.replace(self._about)

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def _verify(self) -> None:
        size = self._size()
        if self._wanted.size not in (None, size):
            self._forget()
            raise DownloadError(f"{self._url}: gave {size:,} bytes; published are {self._wanted.size:,}")
        if self._wanted.digest is None:
            return
        kind, _, expected = self._wanted.digest.partition(":")
        found = _hash(self._part, kind)
        if found != expected:
            self._forget()
            raise DownloadError(f"{self._url}: gave a file of {kind} {found}; published is {expected}")


def _refuse(answer: httpx.Response, url: str) -> None:
    """Raise what an answer that brings no file means."""
    code = answer.status_code
    if code in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS) or code >= 500:
        after = answer.headers.get("Retry-After", "")
        raise _CutError(f"the server answers {code}", pause_s=float(after) if after.isdecimal() else 0.0)
    if code >= 400 and code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise DownloadError(f"{url}: the server answers {code} {answer.reason_phrase}")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{url}: the server sends it packed as {answer.headers['Content-Encoding']}, though not asked to")
    if code < 300 and answer.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadError(f"{url}: the server sends a web page in the place of the file")


def _hash(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    size = path.stat().st_size
    with path.open("rb") as stream:
        chunks = iter(lambda: stream.read(_CHUNK), b"")
        for chunk in track(chunks, total=-(-size // _CHUNK), label=f"checking {path.name}", unit="MiB"):
            digest.update(chunk)
    return digest.hexdigest()
