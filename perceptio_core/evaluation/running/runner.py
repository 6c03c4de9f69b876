"""Asking a model every question of a benchmark, in batches, so that a killed run goes on where it stood.

The batches are the same in every run (a batched generation may depend on its batch in the last bit), so a batch is
either recorded whole or asked again. Answers are appended to a file of JSON lines as they come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.data.images import open_with_format
from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item
from perceptio_core.evaluation.running.answer_rows import from_row, to_row
from perceptio_core.evaluation.running.depth_codes import CodeSource
from perceptio_core.grammar import strip_perception
from perceptio_core.progress import track


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


def ask(
    items: Sequence[Item],
    predict: Predict,
    *,
    journal: Path,
    label: str,
    batch_size: int,
    max_new_tokens: int,
    max_pixels: int,
    segment: bool | None = None,
    depth: bool | None = None,
    codes: CodeSource | None = None,
) -> list[Answer]:
    """The answers to `items`, in their order.

    Args:
        items: the questions.
        predict: the model.
        journal: file of the answers so far; made if absent, continued if not.
        label: names the benchmark in the progress lines.
        batch_size: questions per call.
        max_new_tokens: length of the answer text in tokens.
        max_pixels: larger images are refused by their header: an answer with `Answer.error`, scored as wrong.
        segment: force (True) or forbid (False) masks.
        depth: force or forbid depth codes.
        codes: what stands in the depth spans in place of the model's own codes.
    """
    answers = _resume(journal)
    batches = [list(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
    todo = [batch for batch in batches if any(item.item_id not in answers for item in batch)]

    def run() -> Iterator[Answer]:
        with journal.open("a", encoding="utf-8") as stream:
            for batch in todo:
                given = _ask_batch(
                    batch,
                    predict,
                    max_pixels=max_pixels,
                    segment=segment,
                    depth=depth,
                    codes=codes,
                    max_new_tokens=max_new_tokens,
                )
                stream.write("".join(json.dumps(to_row(answer)) + "\n" for answer in given))
                stream.flush()
                yield from given

    for answer in track(run(), total=sum(map(len, todo)), label=label, unit="questions"):
        answers[answer.item_id] = answer
    return [answers[item.item_id] for item in items]


def _ask_batch(
    batch: Sequence[Item], predict: Predict, *, max_pixels: int, codes: CodeSource | None, **options: Any
) -> list[Answer]:
    answers: dict[str, Answer] = {}
    images, asked, pictures = [], [], []
    for item in batch:
        try:
            image = _picture(item, max_pixels)
            if item.truth is not None and list(item.truth["size"]) != [image.height, image.width]:
                raise ValueError(
                    f"{item.item_id}: height and width of the image are not the annotated {list(item.truth['size'])}"
                )
            if codes and (pictured := codes.pictured(item)):
                pictures.append(image if pictured is item else _picture(pictured, max_pixels))
            images.append(image)
            asked.append(item)
        except ValueError as error:
            answers[item.item_id] = Answer(item_id=item.item_id, raw="", text="", error=str(error))
    if codes and asked:
        options["depth_codes"] = codes.codes(asked, pictures)
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
    return [answers[item.item_id] for item in batch]


def _picture(item: Item, max_pixels: int) -> Image.Image:
    """The item's picture; errors do not say where the data lie on this machine, so they are the same on every one."""
    name = item.image.name if isinstance(item.image, Path) else item.item_id
    return open_with_format(item.image, max_pixels=max_pixels, name=name).image


def _resume(journal: Path) -> dict[str, Answer]:
    """The answers recorded so far; a last line without its end, torn by a kill, is cut off."""
    if not journal.exists():
        return {}
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with journal.open("r+b") as stream:
            stream.truncate(len(whole))
    answers = (from_row(json.loads(line)) for line in whole.decode("utf-8").splitlines())
    return {answer.item_id: answer for answer in answers}
