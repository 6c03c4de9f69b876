"""How the columns of a table of questions are called: the four names, or what people mostly write in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "image_path", "image_file", "file_name", "filename", "img", "picture", "photo"),
    "question": ("question", "prompt", "query", "instruction", "expression"),
    "answer": ("answer", "response", "output", "label"),
    "mask": ("mask", "mask_path", "mask_file"),
}
"""Per column the names that it may have; of several that are there the first counts."""


def columns_of(names: Iterable[Any]) -> dict[str, str]:
    """Of the columns in `NAMES` those that a table has, each with its name there.

    Capitals, blanks at the ends, and whether words are joined by blanks, hyphens or underscores, make no difference.

    Raises:
        ValueError: two columns differ in no more than that.
    """
    there: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            continue
        plain = "_".join(name.casefold().replace("-", " ").replace("_", " ").split())
        if plain in there and any(plain in known for known in NAMES.values()):
            raise ValueError(f"the columns {there[plain]!r} and {name!r} have one name")
        there[plain] = name
    found = {column: next((there[name] for name in known if name in there), None) for column, known in NAMES.items()}
    return {column: name for column, name in found.items() if name is not None}


def missing_of(columns: Mapping[str, str]) -> list[str]:
    """The columns that a table with these columns lacks: image, question, and an answer or a mask."""
    wanted = ["image", "question", *([] if "mask" in columns else ["answer"])]
    return [column for column in wanted if column not in columns]
