"""JSON lines: files with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The number and the object of each line that is not empty; of a line that holds none, the reason in its place."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, row if isinstance(row, dict) else "the line is not an object"


def read_jsonl(path: Path, *, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a file. Raises ValueError as `stream_jsonl` does."""
    return list(stream_jsonl(path, keys=keys))


def stream_jsonl(path: Path, *, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file, one after the other.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or a line is no JSON object or lacks one of `keys`; names file
            and line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with path.open(encoding="utf-8-sig") as stream:  # Windows puts a mark before the first line
            for number, row in objects(stream):
                if isinstance(row, str):
                    raise ValueError(f"{path}:{number}: {row}")
                if any(key not in row for key in keys):
                    raise ValueError(f"{path}:{number}: expected an object with the keys {list(keys)}")
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, keys sorted, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    part.replace(path)
