"""Files and folders that are whole or not there, and errors that name the file, as when a disk is full."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_UNFINISHED = ".unfinished"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which becomes `path` in one step if nothing is raised meanwhile.

    Its name is the caller's own, so that several processes, on one machine or many, may write the same file at once: each
    finds it whole, and the last one's bytes stay. What a block that fails has written is removed: it would only fill the disk.

    Raises:
        OSError: the system's, such as "No space left on device"; names the file.
    """
    unfinished = _beside(path)
    try:
        with naming(path):
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Like `whole`, for a folder. If one has come to lie there meanwhile, that one stays and the new one is dropped."""
    unfinished = _beside(path)
    unfinished.mkdir()
    try:
        with naming(path):
            yield unfinished
        try:
            unfinished.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def follow_umask(*files: Path) -> None:
    """Give files the mode that a new file gets where they lie: safetensors writes 0600, whatever the umask is."""
    for file in files:
        probe = _beside(file)  # to read the umask is to change it, for all threads; and a folder may have defaults of its own
        try:
            probe.touch()
            file.chmod(probe.stat().st_mode)
        finally:
            probe.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder in order, those of linked folders too, and links to nothing.

    A folder that is linked twice, or into itself, is entered once.
    """
    seen: set[tuple[int, int]] = set()

    def below(place: Path) -> Iterator[Path]:
        status = place.stat()
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in sorted(place.iterdir()):
            if entry.is_dir():
                yield from below(entry)
            else:
                yield entry

    return below(folder)


def stamp(path: Path) -> list[int] | None:
    """What changes when a file changes: size and time; None for one that is absent."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed have left of `whole` in a folder."""
    for file in folder.glob(f".*{_UNFINISHED}"):
        file.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path into an error of the system that comes out of the block: writing to an open file leaves it out.

    Raises:
        OSError: the system's, also where safetensors made an error of its own of it; names the file.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        if (code := _OS_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
