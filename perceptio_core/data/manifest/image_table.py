"""The images of all data sets, each once: a scratch table on disk, since they may be more than memory holds.

Two files are one image when their bytes are the same, and also when they are the same photograph of COCO or Visual Genome by
number, of the same size, and look alike: another encoding, whose pixels lie where they lay, so that masks and boxes fit. A
copy of another size stays an image of its own, for they would not.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.data.images import ImageFacts
from perceptio_core.data.manifest.held_out import LARGEST_DISTANCE, coco_id
from perceptio_core.data.manifest.manifest import ImageRow
from perceptio_core.data.records import Refused

AMONG_VAL = "the same image is among the val images"
"""Why a training image is left out."""

_PAGE = 1024  # rows that are Python objects at the same time
_CACHE_KIB = 65_536
_VISUAL_GENOME = re.compile(r"(?:VG_100K(?:_2)?|gqa/images)/(\d+)\.jpe?g$", re.IGNORECASE)
_TABLES = """
CREATE TABLE images (  -- one row a file
    path TEXT PRIMARY KEY, name TEXT, source TEXT, split TEXT, photograph TEXT,
    width INTEGER, height INTEGER, sha256 TEXT, look BLOB,  -- null until it is checked, and where it cannot be read
    reason TEXT,     -- why it is left out
    image_key TEXT   -- of what it is or is a copy of
) WITHOUT ROWID;
CREATE INDEX contents ON images (sha256, split);
CREATE INDEX photographs ON images (photograph, split);
CREATE TABLE kept (  -- one row an image
    image_key TEXT PRIMARY KEY, path TEXT, split TEXT, width INTEGER, height INTEGER, sha256 TEXT,
    photograph TEXT, look BLOB, used INTEGER DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX kept_contents ON kept (sha256);
CREATE INDEX kept_photographs ON kept (photograph);
"""


class Catalogue:
    """The table, filled in this order: `add`, `check`, `leave_out`, `settle`; then it can be asked.

    Args:
        path: the scratch file; one that is there is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._table = sqlite3.connect(path, isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._table.execute(f"PRAGMA {setting}")
        self._table.executescript(_TABLES)
        self._table.execute("BEGIN")

    def close(self) -> None:
        """Close the file; it is of no use to anybody else."""
        self._table.close()

    def add(self, images: Iterable[Mapping[str, Any]]) -> None:
        """Take up image files by the columns image, image_name, source and split of records; the first record of one stays."""
        rows = ({**row, "photograph": photograph(row["image"])} for row in images)
        self._table.executemany(
            "INSERT OR IGNORE INTO images (path, name, source, split, photograph)"
            " VALUES (:image, :image_name, :source, :split, :photograph)",
            rows,
        )

    def count_unchecked(self) -> int:
        """Files of which nothing is known yet."""
        return int(self._table.execute("SELECT COUNT(*) FROM images WHERE sha256 IS NULL AND reason IS NULL").fetchone()[0])

    def unchecked(self) -> Iterator[list[str]]:
        """Their paths, ascending, a page at a time."""
        for page in self._pages("path, sha256, reason"):
            if paths := [path for path, known, reason in page if known is None and reason is None]:
                yield paths

    def check(self, path: str, facts: ImageFacts | str) -> None:
        """Note what a file is, or why it cannot be read; nothing for a path that was not added."""
        if isinstance(facts, str):
            self.leave_out([(path, facts)])
            return
        values = (facts.width, facts.height, facts.sha256, bytes.fromhex(facts.look), path)
        self._table.execute("UPDATE images SET width = ?, height = ?, sha256 = ?, look = ? WHERE path = ?", values)

    def train_looks(self) -> Iterator[tuple[str, bytes]]:
        """Path and difference hash of all training images that can be read."""
        for page in self._pages("path, split, look"):
            yield from ((path, look) for path, split, look in page if split == "train" and look is not None)

    def leave_out(self, reasons: Iterable[tuple[str, str]]) -> None:
        """Note (path, reason) of files that may not be used."""
        self._table.executemany("UPDATE images SET reason = ?2 WHERE path = ?1", reasons)

    def settle(self) -> Iterator[Refused]:
        """Give every file its image, in the order of the paths; yields those that are left out."""
        for page in self._pages("path, name, source, split, photograph, width, height, sha256, look, reason"):
            settled: list[tuple[str | None, str | None, str]] = []
            for path, name, source, split, number, width, height, content, look, reason in page:
                shape = (number, width, height)
                if split == "train" and content is not None and self._is_among_val(content, shape, look):
                    reason = AMONG_VAL
                if reason is not None:
                    settled.append((None, reason, path))
                    yield Refused(file=path, reason=reason)
                    continue
                key = self._copy_of(content, shape, look)
                if key is None:
                    key = self._new_key(source, name, path)
                    row = (key, path, split, width, height, content, number, look)
                    self._table.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", row)
                settled.append((key, None, path))
            self._table.executemany("UPDATE images SET image_key = ?, reason = ? WHERE path = ?", settled)

    def find(self, path: str) -> ImageRow | str:
        """The image of a file, or why it is left out."""
        found = self._table.execute(
            "SELECT images.reason, kept.image_key, kept.path, kept.width, kept.height, kept.sha256, kept.split"
            " FROM images LEFT JOIN kept USING (image_key) WHERE images.path = ?",
            (path,),
        ).fetchone()
        if found[0] is not None:
            return str(found[0])
        _, key, own, width, height, content, split = found
        return ImageRow(image_key=key, path=own, width=width, height=height, sha256=content, split=split)

    def use(self, image_key: str) -> None:
        """Note that a record is about this image."""
        self._table.execute("UPDATE kept SET used = 1 WHERE image_key = ? AND used = 0", (image_key,))

    def used(self) -> Iterator[ImageRow]:
        """The images that records are about, ascending by their keys."""
        columns = ("image_key", "path", "width", "height", "sha256", "split")
        for row in self._table.execute(f"SELECT {', '.join(columns)} FROM kept WHERE used ORDER BY image_key"):
            yield ImageRow(**dict(zip(columns, row, strict=True)))

    def copies(self) -> int:
        """Files that are copies of others and stand for one image with them."""
        (files,) = self._table.execute("SELECT COUNT(image_key) FROM images").fetchone()
        (images,) = self._table.execute("SELECT COUNT(*) FROM kept").fetchone()
        return int(files) - int(images)

    def _pages(self, columns: str) -> Iterator[list[tuple[Any, ...]]]:
        """All files by path; rows may be changed between two pages."""
        last = ""
        query = f"SELECT {columns} FROM images WHERE path > ? ORDER BY path LIMIT {_PAGE}"
        while page := self._table.execute(query, (last,)).fetchall():
            yield page
            last = page[-1][0]

    def _is_among_val(self, content: str, shape: tuple[Any, ...], look: bytes) -> bool:
        same = self._table.execute("SELECT 1 FROM images WHERE sha256 = ? AND split = 'val' LIMIT 1", (content,)).fetchone()
        others = self._table.execute(
            "SELECT look FROM images WHERE photograph = ? AND split = 'val' AND width = ? AND height = ?", shape
        )
        return same is not None or any(_alike(look, other) for (other,) in others)

    def _copy_of(self, content: str, shape: tuple[Any, ...], look: bytes) -> str | None:
        """Key of the image that is kept already and is the same."""
        same = self._table.execute("SELECT image_key FROM kept WHERE sha256 = ?", (content,)).fetchone()
        if same is not None:
            return str(same[0])
        others = self._table.execute(
            "SELECT image_key, look FROM kept WHERE photograph = ? AND width = ? AND height = ? ORDER BY image_key", shape
        )
        return next((str(key) for key, other in others if _alike(look, other)), None)

    def _new_key(self, source: str, name: str, path: str) -> str:
        """``<data set>/<name>`` in letters, digits, ``_``, ``-`` and ``/`` (tar members end their key at the first dot)."""
        key = f"{source}/{re.sub(r'[^A-Za-z0-9_/-]', '_', name)}"
        taken = self._table.execute("SELECT 1 FROM kept WHERE image_key = ?", (key,)).fetchone()
        # The depth shards write "/" as "__", so a key must differ from the others in that form too.
        if any(part in ("", ".", "..") for part in key.split("/")) or "__" in key or taken:
            key = f"{source}/{sha256(path.encode()).hexdigest()[:24]}"
        return key


def photograph(path: str) -> str | None:
    """What a file's name says of the photograph in it, by the numbers that COCO and Visual Genome (GQA's too) give them."""
    number = coco_id(path)
    if number is not None:
        return f"coco {number}"
    match = _VISUAL_GENOME.search(PurePosixPath(path).as_posix())
    return f"vg {int(match[1])}" if match else None


def _alike(first: bytes, second: bytes) -> bool:
    return (int.from_bytes(first) ^ int.from_bytes(second)).bit_count() <= LARGEST_DISTANCE
