"""The rows of a list in a JSON file, one at a time: a file may be longer than memory.

What Python writes and JSON does not know is read: NaN, Infinity and whole numbers of more than 64 bits become null, which no
reader takes for a number. So is a byte order mark.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import ijson

_WHAT = re.compile(r"(lexical|parse) error: [^\\\n]+")
_AT_ONCE = 1 << 16  # bytes read at a time; the rows in them are made before the first one comes
_DEEPEST = 100
_MOST_DIGITS = 20  # with the sign, of 64 bits
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|(?<![\w.+-])(?:NaN|-?Infinity|-?\d{19,}(?![\d.eE]))', re.DOTALL)
_NEVER_SPLIT = re.compile(rb"[\w.+-]*\Z")


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
            start = _Marked(stream).read(_AT_ONCE).lstrip()[:1]
            if start and start != b"[":
                raise ValueError(f"expected a list of {of}, it starts with {start.decode(errors='replace')!r}")
        yield from _items(path, "item")
    except (OSError, ValueError, ijson.JSONError) as error:
        raise _named(path, error) from error


def key_rows(path: Path, key: str) -> Iterator[Any]:
    """The rows of the list that an object holds under a key.

    Raises:
        ValueError: absent, no JSON, or without a list of this name; names file and key.
    """
    try:
        row = None
        for row in _items(path, f"{key}.item"):
            yield row
        if row is None and not _is_list(path, key):
            raise ValueError(f"{key} must be a list")
    except (OSError, ValueError, ijson.JSONError) as error:
        raise _named(path, error) from error


class _Readable(Protocol):
    def read(self, size: int) -> bytes: ...


def _items(path: Path, prefix: str) -> Iterator[Any]:
    """The rows, by the quick way as long as it goes; from the first thing that JSON does not know on, by the careful one."""
    count = 0
    try:
        with path.open("rb") as stream:
            for row in _parsed(_Marked(stream), prefix):
                yield row
                count += 1
            return
    except ijson.JSONError:
        pass
    with path.open("rb") as stream:
        yield from islice(_parsed(_Careful(_Marked(stream)), prefix), count, None)


def _parsed(stream: _Readable, prefix: str) -> Iterator[Any]:
    events = ijson.basic_parse(stream, use_float=True, buf_size=_AT_ONCE)
    yield from ijson.items(ijson.parse(_shallow(events)), prefix)


class _Marked:
    """A file without the byte order mark that it may begin with."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._begun = stream, False

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        if not self._begun and size >= len(BOM_UTF8):
            self._begun = True
            content = content.removeprefix(BOM_UTF8) or self._stream.read(size)
        return content


class _Careful:
    """A file of JSON in which null stands for the values that JSON does not know; what strings say stays."""

    def __init__(self, stream: _Readable) -> None:
        self._stream, self._rest, self._ended = stream, b"", False

    def read(self, size: int) -> bytes:
        while size and not self._ended:  # ijson reads nothing at first, to see that these are bytes
            more = self._stream.read(size)
            self._ended = not more
            text = self._rest + more
            end = len(text) if self._ended else self._whole(text)
            self._rest = text[end:]
            if end:
                return _TOKEN.sub(_known, text[:end])
        return b""

    def _whole(self, text: bytes) -> int:
        """Up to where no string and no number or word is cut in two."""
        end = 0
        for token in _TOKEN.finditer(text):
            if token[0][:1] == b'"':
                end = token.end()
        opened = text.find(b'"', end)
        if opened >= 0:
            return opened
        cut = _NEVER_SPLIT.search(text, end)
        return cut.start() if cut else len(text)


def _known(token: re.Match[bytes]) -> bytes:
    """A token, or null for one that JSON or a number of 64 bits does not know."""
    text = token[0]
    fits = text[:1] == b'"' or (text[-1:].isdigit() and len(text) <= _MOST_DIGITS and abs(int(text)) < 1 << 63)
    return text if fits else b"null"


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
        events = _shallow(ijson.basic_parse(_Careful(_Marked(stream)), buf_size=_AT_ONCE))
        return any((prefix, event) == (key, "start_array") for prefix, event, _ in ijson.parse(events))


def _named(path: Path, error: Exception) -> ValueError:
    if isinstance(error, ijson.JSONError):  # several lines, with a drawing of the place
        found = _WHAT.search(str(error))
        return ValueError(f"{path}: not JSON: {found[0] if found else error}")
    return error if isinstance(error, ValueError) and str(path) in str(error) else ValueError(f"{path}: {error}")
