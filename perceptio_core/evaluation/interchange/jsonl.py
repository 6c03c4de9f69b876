"""Reading and writing of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_jsonl(path: Path, *, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, empty lines left out.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or a line is no JSON object or lacks one of `keys`; names file
            and line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows puts a mark before the first line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(row, dict) or any(key not in row for key in keys):
            raise ValueError(f"{path}:{number}: expected an object with the keys {list(keys)}")
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, keys sorted, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")
    part.replace(path)
