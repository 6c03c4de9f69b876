"""Files and folders that are whole or not there."""

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".unfinished"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which becomes `path` in one step if nothing is raised meanwhile.

    Its name is the caller's own, so that several processes, on one machine or many, may write the same file at once: each
    finds it whole, and the last one's bytes stay.
    """
    unfinished = _beside(path)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, of which the first one stays."""
    unfinished = _beside(path)
    unfinished.mkdir()
    try:
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed have left of `whole` in a folder."""
    for file in folder.glob(f".*{_UNFINISHED}"):
        file.unlink(missing_ok=True)
