"""Our checkpoints in lmms-eval (0.7 and later), so that its tasks can ask them.

    python -m lmms_eval --model perceptio --model_args pretrained=CHECKPOINT --tasks mme --batch_size 16

lmms-eval finds the model by its entry point (pyproject.toml). One image per question, greedy decoding, one process. The
answers are given without perception spans, which its parsers would stumble over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms
from PIL import Image

from perceptio_core.grammar import strip_perception
from perceptio_core.model.inference import Perceptor
from perceptio_core.progress import track

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MAX_NEW_TOKENS = 128
"""Where the task does not say."""


def manifest() -> ModelManifest:
    """What lmms-eval's registry asks for."""
    # Not at the top: the package of the registry asks for this manifest while it is being imported.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="perceptio", simple_class_path=f"{__name__}.Perceptio")


class Perceptio(lmms):
    """A checkpoint folder as a model of lmms-eval.

    Args:
        pretrained: the folder.
        batch_size: questions per pass; "auto" is not known.
        max_batch_size: given by lmms-eval, and without use here.
        device: torch device; by default the GPU where there is one.
        segment: whether masks are forced (True), forbidden (False), or up to the model.
        depth: the same for depth codes.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # noqa: ARG002 (lmms-eval hands it to every model)
        device: str | None = None,
        segment: bool | None = None,
        depth: bool | None = None,
    ) -> None:
        super().__init__()
        self._perceptor = Perceptor.from_pretrained(Path(pretrained), device=device, batch_size=int(batch_size))
        self._segment, self._depth = segment, depth

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self._perceptor.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers, in the order of the requests.

        Raises:
            ValueError: a request has not exactly one image, or asks for sampling.
        """
        images, questions, settings = [], [], []
        for request in requests:
            question, options, to_visual, doc_id, task, split = request.args
            if options.get("do_sample") or options.get("temperature"):
                raise ValueError(f"{task}: {options} ask for sampling; perceptio decodes greedily")
            images.append(_single(to_visual(self.task_dict[task][split][doc_id]), f"{task}, document {doc_id}"))
            questions.append(question)
            until = options.get("until") or []
            stops = [until] if isinstance(until, str) else until
            settings.append((int(options.get("max_new_tokens", MAX_NEW_TOKENS)), tuple(stop for stop in stops if stop)))
        answers: list[str] = [""] * len(images)
        given = self._answers(images, questions, settings)
        for row, text in track(given, total=len(images), label="answers", unit="questions"):
            answers[row] = text
        return answers

    def _answers(
        self, images: Sequence[Image.Image], questions: Sequence[str], settings: Sequence[tuple[int, tuple[str, ...]]]
    ) -> Iterator[tuple[int, str]]:
        """(row, answer), batch by batch, the questions of one setting (most tokens, stops) together."""
        for length, stops in dict.fromkeys(settings):
            alike = [row for row, setting in enumerate(settings) if setting == (length, stops)]
            for start in range(0, len(alike), self._perceptor.batch_size):
                rows = alike[start : start + self._perceptor.batch_size]
                given = self._perceptor.predict(
                    [images[row] for row in rows],
                    [questions[row] for row in rows],
                    segment=self._segment,
                    depth=self._depth,
                    max_new_tokens=length,
                )
                for row, prediction in zip(rows, given, strict=True):
                    yield row, _until(strip_perception(prediction.text), stops)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: the grammar decides what may be written, so likelihoods of foreign texts mean nothing."""
        raise NotImplementedError("perceptio generates; tasks that compare likelihoods cannot ask it")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: one question, one answer."""
        raise NotImplementedError("perceptio answers one question at a time; multi-round tasks cannot ask it")


def _single(visuals: Sequence[Any], where: str) -> Image.Image:
    if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
        kinds = ", ".join(type(visual).__name__ for visual in visuals)
        raise ValueError(f"{where}: perceptio takes one image, got {len(visuals)} visuals ({kinds})")
    return visuals[0]


def _until(text: str, stops: Sequence[str]) -> str:
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
