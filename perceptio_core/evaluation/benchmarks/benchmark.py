"""What a benchmark is to the rest of the program: questions about images, and a scorer of the answers to them.

A benchmark reads its official files when it is made, and refuses what it does not understand with the file's name. Its
scorer sees answers alone, so a file of predictions can be scored again at any time without the model.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question about one image."""

    item_id: str
    """Unique in the benchmark."""
    image: Path | bytes
    """A file, or an encoded image (MMBench keeps base64 in its table)."""
    unmarked: Path | None = None
    """The same picture without the marks that the question speaks of, where the benchmark has it: what a depth teacher, which
    knows no marks, is shown."""
    question: str
    """The prompt, word for word as the model gets it."""
    expected: str
    """The right answer: a letter, yes or no, or the referring expression."""
    truth: Mapping[str, Any] | None = None
    """Right mask of a referring expression: compressed COCO RLE at the original resolution."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said to one item."""

    item_id: str
    raw: str
    """Everything that was generated, perception tokens included."""
    text: str
    """`raw` without perception tokens: what the scorers read."""
    masks: tuple[Mapping[str, Any], ...] = ()
    """One compressed COCO RLE per [SEG], at the image's original resolution."""
    depth_codes: tuple[int, ...] | None = None
    passes: int | None = None
    """Forward passes of the language model that read the answer, where they are known."""
    error: str | None = None
    """Why there is no answer (an unreadable image): the item counts as wrong."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The outcome of one benchmark."""

    headline: list[Metric]
    main: str
    """Name of the one headline metric that stands for the benchmark."""
    baselines: list[Metric] = field(default_factory=list)
    """What is reached without the model, on the same questions."""
    breakdown: list[Metric] = field(default_factory=list)
    """Parts of the headline: subsets, categories, other readings of the same answers."""
    correct: Mapping[str, float | None]
    """Per item 0 or 1, or the IoU of a mask; None where the right answer is not public."""
    unparsed: int = 0
    """Answers from which no option, yes or no could be read; they count as wrong."""
    parsable: int = 0
    """Answers that had to be read for an option, yes or no."""


class Benchmark(Protocol):
    """A set of questions with its official scorer."""

    @property
    def items(self) -> Sequence[Item]:
        """The questions in the order of the official files."""
        ...

    def score(self, answers: Mapping[str, Answer], *, bootstrap: Bootstrap) -> Scores:
        """Score one answer per item, keyed by `Item.item_id`."""
        ...


def unique(keys: Iterable[Hashable], *, what: str, named_in: Path) -> None:
    """Refuse a key that occurs twice, or that a file gives as a list or an object."""
    seen: set[Hashable] = set()
    for key in keys:
        if not isinstance(key, Hashable):
            raise ValueError(f"{named_in}: {what} {key!r} is neither a number nor a text")
        if key in seen:
            raise ValueError(f"{named_in}: {what} {key!r} occurs twice")
        seen.add(key)


def said(row: Mapping[str, Any], key: str, where: str) -> str:
    """A field of an official file that is put before the model: a text, or a number as one.

    Raises:
        ValueError: it is absent, null, empty, not finite, or a list or an object; `where` says of which row.
    """
    value = row.get(key)
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key} must be a text, got {value!r:.80}")
    return value


def read_json(file: Path) -> Any:
    """What a JSON file holds; a byte order mark, as Windows writes it, is left out.

    Raises:
        ValueError: absent or not JSON; names the file.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error


def accuracy(
    hits: Sequence[bool] | Sequence[float],
    *,
    name: str,
    protocol: str,
    bootstrap: Bootstrap,
    unit: str,
    chance: float | None = None,
) -> Metric:
    """Mean of `hits` (0..1 each) in percent, resampled by the unit that one hit stands for; `chance` as `Metric` has it."""
    values = np.asarray(hits, dtype=np.float64)[:, None]
    low, high = bootstrap.interval([values], lambda means: 100.0 * means[0][:, 0])
    return Metric(
        name=name,
        value=100.0 * float(values.mean()),
        low=low,
        high=high,
        n=len(values),
        chance=chance,
        protocol=f"{protocol}; {unit}",
    )


def most_frequent(texts: Iterable[str]) -> str:
    """The text that occurs most often; of several the first in the alphabet.

    Raises:
        ValueError: there is none.
    """
    counts = Counter(texts)
    return min(counts, key=lambda text: (-counts[text], text))


def unparsed_share(scores: Sequence[Scores], bootstrap: Bootstrap) -> list[Metric]:
    """The metric ``unparsed``: the share of answers that could not be read; none where no answer had to be."""
    missed, asked = sum(score.unparsed for score in scores), sum(score.parsable for score in scores)
    if asked == 0:
        return []
    flags = [True] * missed + [False] * (asked - missed)
    protocol = f"{missed} of {asked} answers from which no option, yes or no could be read (all count as wrong)"
    return [accuracy(flags, name="unparsed", protocol=protocol, bootstrap=bootstrap, unit="per question")]


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Items by key, groups in the order of their first item."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
