"""Conversations in LLaVA's form: a JSON list of {id, image, conversations: [{from: human | gpt, value}, ...]}."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.data.records import Record, Refused, Split, inside

PLACEHOLDER = "<image>"


def llava_records(
    path: Path, *, source: str, split: Split, root: Path, images: str | None
) -> tuple[list[Record], list[Refused]]:
    """One conversation record per row; image paths are relative to `images` below `root`, by default to `root` itself.

    Rows without an image or with a malformed conversation are refused, each with its number and the reason.

    Raises:
        ValueError: the file is absent or not a JSON list.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            rows = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of conversations, got {type(rows).__name__}")
    records, refused = [], []
    for number, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise ValueError("the row is not an object")
            if "image" not in row:
                raise ValueError("the row has no image")
            image = inside(images or "", row["image"], named_in=path)
            turns = _turns(row.get("conversations"))
        except ValueError as error:
            refused.append(Refused(file=f"{path.relative_to(root)}#{number}", reason=str(error)))
            continue
        records.append(
            Record(
                record_id=f"{source}/{number}",  # LLaVA's own ids are not unique
                image=image,
                image_name=PurePosixPath(row["image"]).with_suffix("").as_posix(),
                split=split,
                task="conversation",
                turns=turns,
                source=source,
            )
        )
    return records, refused


def _turns(said: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(said, list) or not said or len(said) % 2:
        raise ValueError("conversations must be a list of question and answer in turn")
    texts = []
    for number, saying in enumerate(said):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(saying, dict) or saying.get("from") != speaker or not isinstance(saying.get("value"), str):
            raise ValueError(f"saying {number} must have from: {speaker} and a text as value")
        text = saying["value"]
        texts.append((text.replace(PLACEHOLDER, "") if speaker == "human" else text).strip())
    if not all(texts[0::2]) or not all(texts[1::2]):
        raise ValueError("a question or an answer is empty")
    return tuple(zip(texts[0::2], texts[1::2], strict=True))
