"""The benchmarks' questions at hand: what is asked, what is right, and how the last evaluation did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from perceptio_core.data.images import open_with_format
from perceptio_core.data.manifest.manifest import data_root
from perceptio_core.data.records import spread
from perceptio_core.data.rle import encode
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark, Item
from perceptio_core.evaluation.benchmarks.load import load_benchmark
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.grammar import strip_perception
from perceptio_core.jsonl import read_jsonl
from perceptio_core.params.evaluate import BenchmarkParams, EvaluateParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import Values
from stages.common import StagePaths

if TYPE_CHECKING:
    from perceptio_core.model.inference import Prediction  # brings the model's code, which takes seconds

LISTED = 400
"""Most questions of a benchmark that the page lists (ours): a browser has to hold them all."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question that is listed, and whether the last evaluation had it right: 0..1, None where it is not known."""

    label: str
    item: Item
    correct: float | None


class Questions:
    """The benchmarks of the section `evaluate`, each read when it is first looked at.

    Args:
        values: of the checkout.
    """

    def __init__(self, values: Values) -> None:
        self._values, self._paths = values, StagePaths(values.profile)
        self._read: dict[str, Benchmark] = {}

    @cached_property
    def params(self) -> EvaluateParams:
        """The section `evaluate`."""
        return self._values.section("evaluate", EvaluateParams)

    @cached_property
    def entries(self) -> dict[str, BenchmarkParams]:
        """The benchmarks by their labels."""
        return {entry.label: entry for entry in self.params.benchmarks}

    def benchmark(self, label: str) -> Benchmark:
        """One of them.

        Raises:
            ValueError: its files are missing or malformed.
        """
        if label not in self._read:
            root = data_root(self._values.section("sources", SourcesParams), self._paths.made("sources"))
            self._read[label] = load_benchmark(self.entries[label], root=root)
        return self._read[label]

    def item(self, label: str, item_id: str) -> Item:
        """A benchmark's question.

        Raises:
            ValueError: there is none with this id, or the benchmark's files are missing or malformed.
        """
        if (found := next((one for one in self.benchmark(label).items if one.item_id == item_id), None)) is None:
            raise ValueError(f"{label} has no question {item_id!r}; `perceptio repro evaluate` asks those that it has")
        return found

    def listed(self, label: str, *, variant: str, right: bool | None) -> list[Question]:
        """Questions of a benchmark, spread over it.

        Args:
            label: of the benchmark.
            variant: whose last evaluation says right or wrong.
            right: those that it had right (masks: an IoU of at least one half), or wrong; None: all.
        """
        file = self._paths.out("evaluate", variant) / "predictions" / f"{label}.jsonl"
        known = (
            {row["item_id"]: row["correct"] for row in read_jsonl(file, keys=("item_id", "correct"))} if file.is_file() else {}
        )
        items = self.benchmark(label).items
        if right is not None:
            items = [one for one in items if (at := known.get(one.item_id)) is not None and (at >= 0.5) == right]
        found = []
        for item in spread(items, LISTED):
            correct = known.get(item.item_id)
            mark = "" if correct is None else "✓ " if correct >= 0.5 else "✗ "
            asked = item.question.partition("\n")[0]
            found.append(Question(label=f"{mark}{item.item_id}: {asked:.90}", item=item, correct=correct))
        return found

    def judge(self, label: str, item: Item, prediction: Prediction) -> float | None:
        """How right an answer is, by the benchmark's official rule: 0..1, for a mask its IoU; None where that is not public."""
        benchmark = self.benchmark(label)
        answers = {one.item_id: Answer(item_id=one.item_id, raw="", text="") for one in benchmark.items}
        answers[item.item_id] = Answer(
            item_id=item.item_id,
            raw=prediction.raw,
            text=strip_perception(prediction.text),
            masks=tuple(encode(mask) for mask in prediction.masks),
        )
        return benchmark.score(answers, bootstrap=Bootstrap(samples=1, seed=0)).correct[item.item_id]


def picture_of(item: Item, *, unmarked: bool = False) -> Image.Image:
    """The picture of a question; `unmarked`: as a depth teacher is to see it.

    Raises:
        ValueError: it cannot be read.
    """
    image = item.unmarked if unmarked and item.unmarked else item.image
    return open_with_format(image, name=image.name if isinstance(image, Path) else item.item_id).image
