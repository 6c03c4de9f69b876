"""The checkpoints that the page asks, and the depth codes that it puts into their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.evaluation.benchmarks.benchmark import Item
from perceptio_core.params.evaluate import Replacement
from perceptio_core.params.teacher_depth import TeacherDepthParams
from perceptio_core.params.values import Values
from stages.common import StagePaths

if TYPE_CHECKING:  # the model's code takes seconds; it is brought when the first model is loaded, which the page precedes
    from perceptio_core.evaluation.running.depth_codes import TeacherEncoder
    from perceptio_core.model.inference import Perceptor, Prediction

OWN = "predicted"
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)


class Models:
    """Checkpoints by name, each loaded when it is first asked; one question at a time.

    Args:
        checkpoints: folders, or repositories of the hub; the first is the one that the page begins with.
        values: of the checkout, for its depth teacher; None outside of one.
        device: as `Perceptor.from_pretrained` has it, and so has `dtype`.
        dtype: of the language model.
    """

    def __init__(
        self, checkpoints: Mapping[str, str | Path], *, values: Values | None, device: str | None, dtype: str | None
    ) -> None:
        self._checkpoints, self._values, self._device, self._dtype = dict(checkpoints), values, device, dtype
        self._loaded: dict[str, Perceptor] = {}
        self._lock = Lock()
        self._draws = 0

    @property
    def names(self) -> list[str]:
        """Of the checkpoints."""
        return list(self._checkpoints)

    def get(self, name: str) -> Perceptor:
        """The checkpoint with this name.

        Raises:
            ValueError: there is none, or it cannot be loaded, or there is no memory for it.
        """
        if name not in self._checkpoints:
            raise ValueError(f"there is no model {name!r}; there are {', '.join(self._checkpoints)}")
        from perceptio_core.model.inference import Perceptor

        with self._lock, _refused_for_memory():
            if name not in self._loaded:
                self._loaded[name] = Perceptor.from_pretrained(
                    self._checkpoints[name], device=self._device, dtype=self._dtype, batch_size=1
                )
            return self._loaded[name]

    def ask(
        self,
        name: str,
        image: Image.Image,
        question: str,
        *,
        history: list[tuple[str, str]],
        segment: bool | None,
        depth: bool | None,
        codes: str,
        codes_of: Image.Image | None,
        max_new_tokens: int,
    ) -> Iterator[Prediction]:
        """The answer as it grows, as `Perceptor.predicting` gives it.

        Args:
            name: of the checkpoint.
            image: the picture.
            question: what is asked of it.
            history: the turns before it.
            segment: whether there are masks; None: the model decides, and so for `depth`.
            depth: whether there is a depth span.
            codes: `OWN`, or one of `REPLACEMENTS` in their place.
            codes_of: the picture that the teacher looks at for "oracle" and "other".
            max_new_tokens: most tokens of text.

        Raises:
            ValueError: the model, its processor or the teacher refuses, or memory runs out.
        """
        model = self.get(name)
        given = None
        if codes != OWN:
            if depth is False:
                raise ValueError("depth tokens are switched off, so there is no place for other codes; switch them on")
            depth, given = True, self._codes(cast("Replacement", codes), model=model, picture=codes_of)
        with _refused_for_memory():
            yield from model.predicting(
                image, question, history=history, segment=segment, depth=depth, depth_codes=given, max_new_tokens=max_new_tokens
            )

    def _codes(self, codes: Replacement, *, model: Perceptor, picture: Image.Image | None) -> NDArray[np.int64]:
        if codes in ("oracle", "other") and picture is None:
            raise ValueError("another picture's codes need another picture: drop one below Codes")
        from perceptio_core.evaluation.running.depth_codes import CodeMaker

        self._draws += 1  # each time other codes
        maker = CodeMaker(
            encode=lambda pictures: self._teacher(model)(pictures),
            num_codes=model.model.config.vocabulary.num_codes,
            depth_tokens=model.model.config.depth_tokens,
            seed=self._draws,
        )
        asked = Item(item_id="", image=b"", question="", expected="")
        row: NDArray[np.int64] = maker.codes(codes, [asked], [picture] if picture else [])[0]
        return row

    def _teacher(self, model: Perceptor) -> TeacherEncoder:
        if self._values is None:
            raise ValueError("the teacher's codes need its depth model, which a checkout has: run `perceptio page` in one")
        from perceptio_core.evaluation.running.depth_codes import TeacherEncoder

        folder = StagePaths(self._values.profile).made("foundations") / "depth_anything"
        params = self._values.section("teacher_depth", TeacherDepthParams)
        return TeacherEncoder(teacher=folder, codebook=model.model.codebook, long_side=params.long_side)


@contextmanager
def _refused_for_memory() -> Iterator[None]:
    """Turn torch's error for want of memory on a GPU into a sentence of its own.

    Raises:
        ValueError: in place of it.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(str(error)) from error
