"""Files that appear whole or not at all, and errors that name the file, as when a disk is full."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which becomes `path` in one step if nothing is raised meanwhile.

    What a block that fails has written is removed: it would only fill the disk.

    Raises:
        OSError: the system's, such as "No space left on device"; names the file.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with naming(path):
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
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
