"""Asking a model every question of a benchmark, in batches, so that a killed run goes on where it stood.

The batches are the same in every run (a batched generation may depend on its batch in the last bit), so a batch is
either recorded whole or asked again. Answers are appended to a file of JSON lines as they come, in whatever order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import open_with_format
from perceptio_core.data.rle import encode
from perceptio_core.engine import Engine
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item
from perceptio_core.evaluation.running.answer_rows import from_row, to_row
from perceptio_core.evaluation.running.depth_codes import Codes
from perceptio_core.grammar import strip_perception

_MID_GRAY = (128, 128, 128)


class Prediction(Protocol):
    """What a predictor says to one question; `perceptio_core.model.inference.Prediction` is one."""

    @property
    def raw(self) -> str:
        """All that was generated, perception tokens included."""
        ...

    @property
    def text(self) -> str:
        """The answer text."""
        ...

    @property
    def masks(self) -> Sequence[NDArray[np.bool_]]:
        """One (height, width) mask per [SEG], at the image's size."""
        ...

    @property
    def depth_codes(self) -> NDArray[Any] | None:
        """The depth codes, or None."""
        ...

    @property
    def passes(self) -> int:
        """Forward passes of the language model that read the answer."""
        ...


class Predict(Protocol):
    """A model as the runner calls it; `perceptio_core.model.inference.Perceptor.predict` is one."""

    def __call__(
        self,
        images: list[Image.Image],
        questions: list[str],
        *,
        segment: bool | None = None,
        depth: bool | None = None,
        depth_codes: NDArray[np.int64] | None = None,
        max_new_tokens: int = 32,
    ) -> Sequence[Prediction]:
        """One prediction per image and question; None lets the model decide on a span, and on the codes (B, N) in it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Questions that are asked at once.

    Attributes:
        label: of the benchmark.
        items: the questions.
        pictured: the item whose picture the depth codes of each are of, where they are of one.
    """

    label: str
    items: tuple[Item, ...]
    pictured: tuple[Item | None, ...]


def ask(
    engine: Engine, make: Callable[[], Callable[[Batch], list[Answer]]], batches: Iterable[Batch], *, journals: Path
) -> Iterator[Answer]:
    """Have all batches answered, and keep the answers in ``journals/<label>.jsonl``, in the order in which they come.

    Args:
        engine: asks the batches, wherever; this process alone writes.
        make: gives what answers a batch (`ask_batch`).
        batches: of some benchmarks.
        journals: a folder.
    """
    for batch, answers in engine.map(make, batches):
        with (journals / f"{batch.label}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(to_row(answer)) + "\n" for answer in answers))
        yield from answers


def unanswered(
    label: str, items: Sequence[Item], pictured: Sequence[Item | None], *, journals: Path, batch_size: int
) -> list[Batch]:
    """The batches of a benchmark that its journal does not have whole."""
    known = answers_of(label, journals=journals).keys()
    batches = (
        Batch(
            label=label,
            items=tuple(items[start : start + batch_size]),
            pictured=tuple(pictured[start : start + batch_size]),
        )
        for start in range(0, len(items), batch_size)
    )
    return [batch for batch in batches if any(item.item_id not in known for item in batch.items)]


def ask_batch(
    batch: Batch,
    predict: Predict,
    *,
    max_pixels: int,
    gray: bool = False,
    codes: Callable[[Sequence[Item], Sequence[Image.Image]], Codes] | None = None,
    **options: Any,
) -> list[Answer]:
    """The answers to a batch, in its order.

    Args:
        batch: the questions.
        predict: the model.
        max_pixels: larger images are refused by their header: an answer with `Answer.error`, scored as wrong.
        gray: whether the model is shown mid-gray of the picture's size in place of the picture.
        codes: gives what stands in the depth spans in place of the model's own codes, of items and the pictures that they name.
        options: further ones of `predict`.
    """
    answers: dict[str, Answer] = {}
    images, asked, pictures = [], [], []
    for item, pictured in zip(batch.items, batch.pictured, strict=True):
        try:
            image = _picture(item, max_pixels)
            if item.truth is not None and list(item.truth["size"]) != [image.height, image.width]:
                raise ValueError(
                    f"{item.item_id}: height and width of the image are not the annotated {list(item.truth['size'])}"
                )
            if pictured is not None:
                pictures.append(image if pictured == item else _picture(pictured, max_pixels))
            images.append(Image.new("RGB", image.size, _MID_GRAY) if gray else image)
            asked.append(item)
        except ValueError as error:
            answers[item.item_id] = Answer(item_id=item.item_id, raw="", text="", error=str(error))
    if codes and asked:
        options["depth_codes"] = codes(asked, pictures)
    predictions = predict(images, [item.question for item in asked], **options) if asked else []
    for item, prediction in zip(asked, predictions, strict=True):
        written = prediction.depth_codes
        answers[item.item_id] = Answer(
            item_id=item.item_id,
            raw=prediction.raw,
            text=strip_perception(prediction.text),
            masks=tuple(encode(mask) for mask in prediction.masks),
            depth_codes=None if written is None else tuple(int(code) for code in written),
            passes=prediction.passes,
        )
    return [answers[item.item_id] for item in batch.items]


def _picture(item: Item, max_pixels: int) -> Image.Image:
    """The item's picture; errors do not say where the data lie on this machine, so they are the same on every one."""
    name = item.image.name if isinstance(item.image, Path) else item.item_id
    return open_with_format(item.image, max_pixels=max_pixels, name=name).image


def answers_of(label: str, *, journals: Path) -> dict[str, Answer]:
    """The answers recorded so far; a last line without its end, torn by a kill, is cut off."""
    journal = journals / f"{label}.jsonl"
    if not journal.exists():
        return {}
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with journal.open("r+b") as stream:
            stream.truncate(len(whole))
    answers = (from_row(json.loads(line)) for line in whole.decode("utf-8").splitlines())
    return {answer.item_id: answer for answer in answers}
