"""Which pictures of a data set are for validation, where its makers have not said: those whose name hashes low (ours).

A picture's side is a function of its name and the share alone: it needs no second table, all that is said about a picture
lies on one side, and pictures that are added later move none of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from perceptio_core.data.records import Record, Refused, Split


def place(name: str) -> float:
    """Where a picture stands from 0 (inclusive) to 1 (exclusive): the first 64 bits of the sha256 of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def of_split(records: Iterable[Record | Refused], *, split: Split, share: float) -> Iterator[Record | Refused]:
    """The records of one side, by the paths of their pictures below the data root.

    Rows that are refused are passed on with the training side alone, so that each is told once.

    Args:
        records: of the whole data set.
        split: the side that is wanted.
        share: pictures below this `place` are for validation.
    """
    for record in records:
        if isinstance(record, Refused):
            if split == "train":
                yield record
        elif (place(record.image) < share) == (split == "val"):
            yield record
