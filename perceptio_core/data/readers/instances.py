"""Files in COCO's ``instances`` format: images, annotations and categories, looked up by their ids.

Annotations may come before or after the images that they are about, and references ask for them in any order. So both are
read into a table on disk (SQLite's temporary one, in ``$TMPDIR``); in memory are a few megabytes, however long the file is.
"""

from __future__ import annotations

import marshal
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from perceptio_core.data.readers.json_rows import key_rows

Row = dict[str, Any]
Refuse = Callable[[Any, str], None]
"""Is told of a row that is left out, and why."""
_MOST = 1 << 63


class RowsById(Mapping[int, Row]):
    """Objects by the whole number in their field ``id``, kept on disk; their order is that of the ids.

    Args:
        rows: the objects.
        where: what errors call them.
        check: raises a ValueError for an object that may not be there.
        refuse: is told of such objects, and of those whose id is no whole number; None: they are errors.

    Raises:
        ValueError: an id is no whole number, or stands for two objects that differ.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        *,
        where: str,
        check: Callable[[Row], None] = lambda _: None,
        refuse: Refuse | None = None,
    ) -> None:
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("BEGIN")
        self._table.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, content BLOB NOT NULL)")
        for row in rows:
            try:
                number = whole_number(row, "id", where)
                check(row)
            except ValueError as error:
                if refuse is None:
                    raise
                refuse(row, str(error))
                continue
            # marshal is quick, and nobody else writes this table.
            added = self._table.execute("INSERT OR IGNORE INTO rows VALUES (?, ?)", (number, marshal.dumps(row)))
            if added.rowcount == 0 and self[number] != row:
                raise ValueError(f"{where}: the id {number} stands twice, with different content")

    def __getitem__(self, number: object) -> Row:
        found = None
        if type(number) is int:  # True is no id
            found = self._table.execute("SELECT content FROM rows WHERE id = ?", (number,)).fetchone()
        if found is None:
            raise KeyError(number)
        row: Row = marshal.loads(found[0])
        return row

    def __iter__(self) -> Iterator[int]:
        return (number for (number,) in self._table.execute("SELECT id FROM rows ORDER BY id"))

    def __len__(self) -> int:
        return int(self._table.execute("SELECT COUNT(*) FROM rows").fetchone()[0])


def read_instances(path: Path, *, refuse: Refuse | None = None) -> tuple[RowsById, RowsById, dict[int, str]]:
    """Images by id, annotations by id and category names by id.

    Args:
        path: the file.
        refuse: is told of images, annotations and categories that cannot be used; None: they are errors.

    Raises:
        ValueError: absent, not JSON, without these lists, or with an id that stands for two different things; names the file
            and the key.
    """
    images = read_instance_images(path, refuse=refuse)
    annotations = RowsById(key_rows(path, "annotations"), where=f"{path}: annotations", refuse=refuse)

    def check(category: Row) -> None:
        text_of(category, "name", f"{path}: category {category['id']}")

    categories = RowsById(key_rows(path, "categories"), where=f"{path}: categories", check=check, refuse=refuse)
    return images, annotations, {number: row["name"] for number, row in categories.items()}


def read_instance_images(path: Path, *, refuse: Refuse | None = None) -> RowsById:
    """The images alone; raises what `read_instances` does of them."""

    def check(image: Row) -> None:
        where = f"{path}: image {image['id']}"
        for key in ("height", "width"):
            if whole_number(image, key, where) < 1:
                raise ValueError(f"{where}: {key} must be at least 1")
        text_of(image, "file_name", where)

    return RowsById(key_rows(path, "images"), where=f"{path}: images", check=check, refuse=refuse)


def text_of(row: Any, key: str, where: str) -> str:
    """A field that must be a text with something in it.

    Raises:
        ValueError: it is not; `where` says of what.
    """
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key} must be a text that is not empty, got {value!r:.80}")
    return value


def whole_number(row: Any, key: str, where: str) -> int:
    """A field that must be a whole number.

    Raises:
        ValueError: it is not; `where` says of what.
    """
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not -_MOST <= value < _MOST:
        raise ValueError(f"{where}: {key} must be a whole number of 64 bits, got {value!r:.80}")
    return value
