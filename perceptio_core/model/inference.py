"""Asking a checkpoint: images and questions in; answers, masks and depth maps out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.utils.logging import set_tqdm_hook

from perceptio_core.model.answering import Generated
from perceptio_core.model.checkpoint import refuse_absent
from perceptio_core.model.decoding import MAX_MASKS
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model said about one image.

    Attributes:
        raw: the whole answer with perception tokens, without the end token.
        text: the answer's text.
        masks: one bool (H, W) at the image's own size per [SEG].
        depth_codes: (N,) int64 in [0, K), row-major; None without a depth span.
        depth_map: (R, R) float32 decoded from them, in [-1, 1] up to the decoder's overshoot, near = high; or None.
        passes: forward passes of the language model that read the answer.
    """

    raw: str
    text: str
    masks: list[NDArray[np.bool_]]
    depth_codes: NDArray[np.int64] | None
    depth_map: NDArray[np.float32] | None
    passes: int


class Perceptor:
    """A checkpoint, ready to be asked.

    Args:
        model: without adapters or with; put into evaluation mode.
        processor: of the same checkpoint.
        batch_size: most questions per pass, >= 1.
    """

    def __init__(
        self, *, model: PerceptioForConditionalGeneration, processor: PerceptioProcessor, batch_size: int = 64
    ) -> None:
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | None = None, dtype: str | None = None, batch_size: int = 64
    ) -> Self:
        """Read a checkpoint of co-training; it holds all parts, SAM2 and codebook included.

        Args:
            name: folder of the checkpoint, or a repository of the hub (owner/name).
            device: torch device; by default the GPU where there is one.
            dtype: of the language model, such as "bfloat16"; by default as it was saved. Masks and depth stay float32.
            batch_size: most questions per pass.

        Raises:
            ValueError: no checkpoint is there, or no such device.
        """
        refuse_absent(name)
        wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=wanted)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {wanted}: {str(error).splitlines()[0]}") from error
        try:
            with _without_bar():
                model = PerceptioForConditionalGeneration.from_pretrained(name, dtype=dtype or "auto")
            processor = PerceptioProcessor.from_pretrained(name)
        except OSError as error:
            raise ValueError(f"{name}: no checkpoint that can be read: {' '.join(str(error).split())}") from error
        return cls(model=model.to(wanted), processor=processor, batch_size=batch_size)

    def predict(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
        segment: bool | None = None,
        depth: bool | None = None,
        depth_codes: NDArray[np.int64] | None = None,
        max_masks: int = MAX_MASKS,
        max_new_tokens: int = 32,
    ) -> list[Prediction]:
        """Ask one question about each image.

        Args:
            images: as `PerceptioProcessor.prompts` has them.
            questions: one per image.
            history: the turns before each question, as `PerceptioProcessor.prompts` has it: (question, `Prediction.raw`) pairs.
            segment: as `PerceptioForConditionalGeneration.answer` has it, and so have the others.
            depth: whether there is a depth map.
            depth_codes: what it holds, one row per question.
            max_masks: most masks of an answer.
            max_new_tokens: most tokens of text.

        Raises:
            ValueError: images, questions, histories and rows of codes differ in number, or the processor or `answer` refuses.
        """
        if depth_codes is not None and len(depth_codes) != len(images):
            raise ValueError(f"{len(images)} images but {len(depth_codes)} rows of depth codes")
        if len(images) != len(questions) or (history is not None and len(history) != len(images)):
            told = "" if history is None else f", {len(history)} histories"
            raise ValueError(f"{len(images)} images but {len(questions)} questions{told}")
        predictions: list[Prediction] = []
        for start in range(0, len(images), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            answers = self.model.answer(
                self.processor.prompts(images[chunk], questions[chunk], history=None if history is None else history[chunk]),
                segment=segment,
                depth=depth,
                depth_codes=None if depth_codes is None else depth_codes[chunk],
                max_masks=max_masks,
                max_new_tokens=max_new_tokens,
            )
            predictions += map(self._prediction, answers)
        return predictions

    def predicting(
        self,
        image: Image.Image,
        question: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        segment: bool | None = None,
        depth: bool | None = None,
        depth_codes: NDArray[np.int64] | None = None,
        max_masks: int = MAX_MASKS,
        max_new_tokens: int = 32,
    ) -> Iterator[Prediction]:
        """Ask one question, and see its answer grow: after each forward pass what is written by then, the whole answer last.

        The whole answer is that of `predict`. Before it, `depth_codes` are those that are written, fewer than N, and there is
        no `depth_map`.

        Args:
            image: as `predict` has it, and so has `question`.
            question: what is asked.
            history: the turns before it.
            segment: whether there is a mask, and so has `depth`.
            depth: whether there is a depth map.
            depth_codes: what it holds: N codes.
            max_masks: most masks.
            max_new_tokens: most tokens of text.

        Raises:
            ValueError: the processor refuses, or the model, as `PerceptioForConditionalGeneration.answer` says.
        """
        answers = self.model.answering(
            self.processor.prompts([image], [question], history=[history]),
            segment=segment,
            depth=depth,
            depth_codes=None if depth_codes is None else depth_codes[None],
            max_masks=max_masks,
            max_new_tokens=max_new_tokens,
        )
        vocabulary = self.model.config.vocabulary
        for answer in answers:
            ids = torch.tensor(answer.ids, dtype=torch.int64)
            codes = vocabulary.codes(ids[vocabulary.is_code(ids)]).numpy()
            yield replace(self._prediction(answer), depth_codes=codes if len(codes) else None)

    def _prediction(self, answer: Generated) -> Prediction:
        codes = answer.parsed.depth_codes
        return Prediction(
            raw=self.processor.decode(answer.ids),
            text=self.processor.decode(answer.parsed.text_ids).strip(),
            masks=answer.masks,
            depth_codes=None if codes is None else np.asarray(codes, dtype=np.int64),
            depth_map=answer.depth_map,
            passes=answer.passes,
        )


@contextmanager
def _without_bar() -> Iterator[None]:
    """No bar of transformers' for the weights, which are read in seconds; what comes from the hub keeps the hub's."""
    before = set_tqdm_hook(lambda bar, given, named: bar(*given, **(named | {"disable": True})))
    try:
        yield
    finally:
        set_tqdm_hook(before)
