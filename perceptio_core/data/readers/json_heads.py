"""The first rows of a long JSON file, found without reading what lies before them: to look at a file is not to read it.

A list is found by its key, as text (the first place that looks like it), and its first rows are decoded; the file's last byte
tells whether it was cut off. What lies between is for the readers, which read everything.
"""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Any

_FIRST, _LARGEST = 1 << 16, 1 << 26  # bytes decoded at once, of which the rows must be the beginning
_SPACE = re.compile(r"[\s,]*")


def first_rows(path: Path, key: str, *, count: int) -> list[Any]:
    """The first rows of the list that an object holds under a key.

    Raises:
        ValueError: the file is absent, empty, no JSON object or cut off, or there is no such list, or its rows are no JSON;
            names file and key.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _closes(content)
            found = re.search(rb'"%s"\s*:\s*\[' % re.escape(key.encode()), content)
            if found is None:
                raise ValueError(f"{key} must be a list")
            return _rows(content, found.end(), count)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_plain(error)}") from error


def ends_whole(path: Path) -> None:
    """Look whether the last byte of a JSON file closes what its first one opens.

    Raises:
        ValueError: it does not, or the file is absent or empty; names the file.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _closes(content)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {_plain(error)}") from error


def _closes(content: mmap.mmap) -> None:
    first = content[:_FIRST].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    last = content[-_FIRST:].rstrip()[-1:]
    if first + last not in (b"{}", b"[]"):
        raise ValueError(
            f"cut off, or not JSON: it begins with {first.decode(errors='replace')!r}"
            f" and ends with {last.decode(errors='replace')!r}"
        )


def _rows(content: mmap.mmap, start: int, count: int) -> list[Any]:
    size = _FIRST
    while True:
        text = content[start : start + size].decode(errors="replace")
        try:
            return _decoded(text, count)
        except json.JSONDecodeError:
            if start + size >= len(content) or size >= _LARGEST:
                raise
            size *= 8


def _decoded(text: str, count: int) -> list[Any]:
    rows: list[Any] = []
    decoder, place = json.JSONDecoder(), 0
    while len(rows) < count:
        space = _SPACE.match(text, place)
        place = space.end() if space else place
        if text[place : place + 1] == "]":
            break
        row, place = decoder.raw_decode(text, place)
        rows.append(row)
    return rows


def _plain(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if str(error) == "cannot mmap an empty file":
        return "the file is empty"
    return f"not JSON: {error}" if isinstance(error, json.JSONDecodeError | RecursionError) else str(error)
