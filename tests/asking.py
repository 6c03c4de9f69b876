"""Questions asked in this process: of any predictor without a suite, and by the suite of one that always says the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.engine import Local
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Item
from perceptio_core.evaluation.running.depth_codes import CodeMaker
from perceptio_core.evaluation.running.runner import answers_of, ask, ask_batch, unanswered
from perceptio_core.evaluation.running.suite import Asker, evaluate
from perceptio_core.params.evaluate import EvaluateParams

RAW = "[SEG]<depth_start><depth_3><depth_0><depth_end>"


@dataclass(frozen=True)
class Said:
    raw: str
    text: str
    masks: list[NDArray[np.bool_]] = field(default_factory=list)
    depth_codes: NDArray[np.int64] | None = None
    passes: int = 3


@dataclass
class Fake:
    """Says B, with perception tokens, and a mask that covers the left half; dies after `lives` calls."""

    lives: int = 10**9
    calls: list[list[str]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, images: list[Image.Image], questions: list[str], **options: Any) -> list[Said]:
        if len(self.calls) == self.lives:
            raise KeyboardInterrupt
        self.calls.append(questions)
        self.options.append(options)
        said = []
        for image in images:
            mask = np.zeros((image.height, image.width), dtype=bool)
            mask[:, : image.width // 2] = True
            said.append(Said(raw=f"{RAW} B", text=f"{RAW} B", masks=[mask], depth_codes=np.array([3, 0])))
        return said


def ask_here(items: Sequence[Item], predict: Any, *, journal: Path, batch_size: int, **options: Any) -> list[Answer]:
    """The answers in the order of the items; `journal` is where they are kept, ``<folder>/<label>.jsonl``."""
    where = {"label": journal.stem, "journals": journal.parent}
    batches = unanswered(items=items, pictured=[None] * len(items), batch_size=batch_size, **where)
    list(ask(Local(), lambda: partial(ask_batch, predict=predict, **options), batches, journals=journal.parent))
    known = answers_of(**where)
    return [known[item.item_id] for item in items]


def run_suite(params: EvaluateParams, *, root: Path, out: str, variant: str = "full", predict: Any = None) -> list[Any]:
    """The suite with codes of two places that both say how bright a picture is."""

    def brightness(pictures: Sequence[Image.Image]) -> NDArray[np.int64]:
        return np.array([[picture.getpixel((0, 0))[0]] * 2 for picture in pictures])

    codes = CodeMaker(encode=brightness, num_codes=4, depth_tokens=2, seed=0)

    def make() -> Asker:
        return Asker(predict or Fake(), params, codes)

    return evaluate(Local(), make, params, variant=variant, root=root, journals=root / "j", out=root / out)
