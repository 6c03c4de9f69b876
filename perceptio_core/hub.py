"""Models of the Hugging Face hub at a pinned commit, each file compared with the hash that the hub gave for it.

The hub names a file by a hash of its content: the sha256 of a large one, git's blob id (a sha1) of a small one. It stands
beside the file wherever `huggingface_hub` puts it: as the name of the blob in its cache, and in
``.cache/huggingface/download/`` of a folder that ``hf download --local-dir`` filled.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perceptio_core.progress import Transfer, track

_CHUNK = 1 << 20
_ASK_S = 10.0
log = logging.getLogger(__name__)


class HubUnreachableError(ValueError):
    """The hub did not answer, or answered that it is in trouble or too busy: a later try may fetch the same."""


def download(repo: str, *, revision: str, patterns: Sequence[str]) -> Path:
    """Fetch files of a repository into the hub's cache, and give the folder that holds them there.

    What the cache has is not fetched again, and a broken transfer goes on where it stopped.

    Args:
        repo: owner/name.
        revision: the commit, 40 hex digits.
        patterns: names of the files.

    Raises:
        HubUnreachableError: no answer, or trouble on the hub's side.
        ValueError: there is no such repository or commit.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id=repo, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise (HubUnreachableError if _may_pass(error) else ValueError)(f"{type(error).__name__}: {error}") from error


def find(repo: str, *, revision: str, patterns: Sequence[str]) -> None:
    """Look whether the cache has files of a repository, or else the hub; nothing is fetched.

    Args:
        repo: owner/name.
        revision: the commit, 40 hex digits.
        patterns: each must name a file at least.

    Raises:
        HubUnreachableError: no answer, or trouble on the hub's side.
        ValueError: there is no such repository, commit or file, or an account is needed for it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id=repo, revision=revision, allow_patterns=list(patterns), local_files_only=True))
        if all(any(folder.glob(pattern)) for pattern in patterns):
            return
    except LocalEntryNotFoundError:
        pass
    try:
        listed = HfApi().model_info(repo, revision=revision, timeout=_ASK_S).siblings or []
    except Exception as error:
        raise _failure(error) from error
    names = [file.rfilename for file in listed]
    if absent := [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]:
        raise ValueError(f"the hub has no {', '.join(absent)} there; it has {', '.join(sorted(names)) or 'no file'}")


def download_file(repo: str, file: str, *, revision: str, folder: Path, progress: Transfer) -> Path:
    """Fetch one file of a data set into a folder, compared with the hub's hash of it; a broken transfer goes on.

    Args:
        repo: owner/name.
        file: its path in the repository.
        revision: a commit, or a branch where no commit is known.
        folder: where it goes, at its path in the repository.
        progress: is told the bytes.

    Raises:
        HubUnreachableError: no answer, or trouble on the hub's side.
        ValueError: there is no such repository, commit or file, an account is needed for it, or it is not what the hub says.
    """
    from huggingface_hub import hf_hub_download

    bar = _bytes_to(progress)
    try:
        got = Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision, local_dir=folder, tqdm_class=bar))
    except Exception as error:
        raise _failure(error) from error
    metadata = folder / ".cache/huggingface/download" / f"{file}.metadata"
    _, etag, *_ = [*metadata.read_text(encoding="utf-8").splitlines(), "", ""]
    if (expected := _plausible(etag)) is not None and _hash(got, like=expected) != expected:
        got.unlink()
        raise ValueError(f"{repo}: {file}: its hash is not {expected}, the hub's for it; it was removed")
    return got


def _bytes_to(progress: Transfer) -> type:
    """What huggingface_hub takes for its bar, which tells a `Transfer` instead."""
    from huggingface_hub.utils import tqdm

    class Bytes(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **(named | {"disable": True}))
            progress.expect(int(named.get("total") or 0))
            progress.add(int(named.get("initial") or 0), moved=False)

        def update(self, n: float | None = 1) -> None:
            progress.add(int(n or 0))

    return Bytes


def verify(folder: Path, files: Iterable[Path], *, revision: str) -> None:
    """Compare files with the hashes that the hub gave for them.

    Args:
        folder: a snapshot in the hub's cache, or a folder of `hf download --local-dir`; of any other nothing is known, which
            is logged.
        files: those in `folder` that count.
        revision: the commit that they must be of.

    Raises:
        ValueError: a file is of another commit, or differs; names it.
    """
    unknown = []
    for file in track(sorted(files), label=f"checking {folder.name}", unit="files"):
        expected = _known_hash(file, folder, revision)
        if expected is None:
            unknown.append(file.name)
        elif _hash(file, like=expected) != expected:
            raise ValueError(
                f"{file}: its hash is not {expected}, the hub's for it; delete it and fetch it again: {file.resolve()}"
            )
    if unknown:
        log.warning("%s: no hash is known of %s: taken as they are", folder, ", ".join(unknown))


def _known_hash(file: Path, folder: Path, revision: str) -> str | None:
    if file.is_symlink() and file.resolve().parent.name == "blobs":  # the hub's cache
        return _plausible(file.resolve().name)
    metadata = folder / ".cache/huggingface/download" / f"{file.relative_to(folder).as_posix()}.metadata"
    if not metadata.is_file():
        return None
    commit, etag, *_ = [*metadata.read_text(encoding="utf-8").splitlines(), "", ""]
    if commit != revision:
        raise ValueError(f"{file}: is of the commit {commit}; the profile has {revision}")
    return _plausible(etag)


def _plausible(name: str) -> str | None:
    return name if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", name) else None


def _hash(file: Path, *, like: str) -> str:
    """sha256 of the content, or, for 40 digits, git's id of a blob with this content."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _failure(error: Exception) -> ValueError:
    """An error of huggingface_hub, or of the HTTP library that its version is on, as one of ours."""
    lost = _may_pass(error) or not isinstance(error, OSError | ValueError)
    first = str(error).strip().partition("\n")[0]
    return (HubUnreachableError if lost else ValueError)(f"{type(error).__name__}: {first}")


def _may_pass(error: Exception) -> bool:
    """Whether a later try may fare better: no answer, too many requests, or trouble on the hub's side."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    no_snapshot = isinstance(error, LocalEntryNotFoundError)  # what huggingface_hub makes of most failures to list a repository
    reason = error.__cause__ if no_snapshot else error
    if isinstance(reason, HfHubHTTPError):
        return reason.response.status_code == 429 or reason.response.status_code >= 500
    return no_snapshot and not isinstance(reason, OfflineModeIsEnabled)
