"""Our checkpoints in VLMEvalKit, by one line in its ``vlmeval/config.py`` beside the other models.

    supported_VLM["perceptio"] = partial(perceptio_core.evaluation.interchange.vlmevalkit_model.Perceptio, checkpoint="...")

Then ``python run.py --data MMBench_DEV_EN --model perceptio``. One image per question (of several, the first), greedy decoding.
The answers are given without perception spans, which its parsers would stumble over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel

from perceptio_core.data.images import open_image
from perceptio_core.grammar import strip_perception
from perceptio_core.model.inference import Perceptor


class Perceptio(BaseModel):
    """A checkpoint folder as a model of VLMEvalKit.

    Args:
        checkpoint: the folder.
        max_new_tokens: longest answer text.
        segment: whether masks are forced (True), forbidden (False), or up to the model.
        depth: the same for depth codes.
    """

    INTERLEAVE = False

    def __init__(
        self, *, checkpoint: str, max_new_tokens: int = 128, segment: bool | None = None, depth: bool | None = None
    ) -> None:
        super().__init__()
        self._perceptor = Perceptor.from_pretrained(Path(checkpoint))
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "segment": segment, "depth": depth}

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The answer to one question.

        Args:
            message: VLMEvalKit's parts, {"type": "image" or "text", "value": path or text}.
            dataset: its name.

        Raises:
            ValueError: there is no image, or it cannot be read.
        """
        question, image = self.message_to_promptimg(message, dataset=dataset)
        if image is None:
            raise ValueError(f"{dataset}: perceptio needs an image; the question was {question!r}")
        picture = open_image(Path(image)) if isinstance(image, str) else image
        (prediction,) = self._perceptor.predict([picture], [question], **self._options)
        return strip_perception(prediction.text)
