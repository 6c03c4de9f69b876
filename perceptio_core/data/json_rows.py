"""The rows of a list in a JSON file, one at a time: a file may be longer than memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import ijson

_WHAT = re.compile(r"(lexical|parse) error: [^\\\n]+")
_AT_ONCE = 1 << 16  # bytes read at a time; the rows in them are made before the first one comes
_DEEPEST = 100


def list_rows(path: Path, *, of: str) -> Iterator[Any]:
    """The rows of a file that is one list.

    Args:
        path: the file.
        of: what the rows are, for the message.

    Raises:
        ValueError: absent, no JSON (also where it is cut off, when that is reached), or no list; names the file.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(_AT_ONCE).lstrip()[:1]
            stream.seek(0)
            if start and start != b"[":
                raise ValueError(f"expected a list of {of}, it starts with {start.decode(errors='replace')!r}")
            yield from _items(stream, "item")
    except (OSError, ValueError, ijson.JSONError) as error:
        raise _named(path, error) from error


def key_rows(path: Path, key: str) -> Iterator[Any]:
    """The rows of the list that an object holds under a key.

    Raises:
        ValueError: absent, no JSON, or without a list of this name; names file and key.
    """
    try:
        with path.open("rb") as stream:
            row = None
            for row in _items(stream, f"{key}.item"):
                yield row
            if row is None and not _is_list(path, key):
                raise ValueError(f"{key} must be a list")
    except (OSError, ValueError, ijson.JSONError) as error:
        raise _named(path, error) from error


def _items(stream: IO[bytes], prefix: str) -> Iterator[Any]:
    events = ijson.basic_parse(stream, use_float=True, buf_size=_AT_ONCE)
    yield from ijson.items(ijson.parse(_shallow(events)), prefix)


def _shallow(events: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The events, unless they are nested too deeply: `ijson` writes out the place of each, which would fill the memory."""
    depth = 0
    for event in events:
        if event[0] in ("start_map", "start_array"):
            depth += 1
            if depth > _DEEPEST:
                raise ValueError(f"nested more than {_DEEPEST} deep")
        elif event[0] in ("end_map", "end_array"):
            depth -= 1
        yield event


def _is_list(path: Path, key: str) -> bool:
    with path.open("rb") as stream:
        events = _shallow(ijson.basic_parse(stream, buf_size=_AT_ONCE))
        return any((prefix, event) == (key, "start_array") for prefix, event, _ in ijson.parse(events))


def _named(path: Path, error: Exception) -> ValueError:
    if isinstance(error, ijson.JSONError):  # several lines, with a drawing of the place
        found = _WHAT.search(str(error))
        return ValueError(f"{path}: not JSON: {found[0] if found else error}")
    return error if isinstance(error, ValueError) and str(path) in str(error) else ValueError(f"{path}: {error}")
