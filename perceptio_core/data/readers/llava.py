"""Conversations in LLaVA's form: a JSON list of {id, image, conversations: [{from: human | gpt, value}, ...]}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.records import Record, Refused, Split, inside

PLACEHOLDER = "<image>"


def llava_records(path: Path, *, source: str, split: Split, root: Path, images: str | None) -> Iterator[Record | Refused]:
    """One conversation record per row; image paths are relative to `images` below `root`, by default to `root` itself.

    Rows without an image or with a malformed conversation are refused, each with its number and the reason.

    Raises:
        ValueError: the file is absent or not a JSON list.
    """
    for number, row in enumerate(list_rows(path, of="conversations")):
        try:
            if not isinstance(row, dict):
                raise ValueError("the row is not an object")
            if "image" not in row:
                raise ValueError("the row has no image")
            image = inside(images or "", row["image"], named_in=path)
            turns = turns_of_row(row.get("conversations"))
        except ValueError as error:
            yield Refused(file=f"{path.relative_to(root)}#{number}", reason=str(error))
            continue
        yield Record(
            record_id=f"{source}/{number}",  # LLaVA's own ids are not unique
            image=image,
            image_name=PurePosixPath(row["image"]).with_suffix("").as_posix(),
            split=split,
            task="conversation",
            turns=turns,
            source=source,
        )


def turns_of_row(said: Any) -> tuple[tuple[str, str], ...]:
    """The (question, answer) pairs of a row's `conversations`, image placeholders taken out.

    Raises:
        ValueError: it is no list of human and gpt in turn, or a text is empty; says what is expected.
    """
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
