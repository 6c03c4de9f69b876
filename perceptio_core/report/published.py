"""Figures that others published, to stand beside the measured ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A column of the published table; `metric` is the headline metric that it stands beside, if any."""

    key: str
    title: str
    metric: str | None


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model's published figures by benchmark key; `beside` puts it into the headline table too."""

    name: str
    source: str
    beside: bool
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Everything that `docs/published.json` holds."""

    note: str
    benchmarks: tuple[Benchmark, ...]
    models: tuple[PublishedModel, ...]

    def value(self, *, model: PublishedModel, metric: str) -> float | None:
        """What `model` published for a headline metric."""
        keys = [benchmark.key for benchmark in self.benchmarks if benchmark.metric == metric]
        return next((model.figures[key] for key in keys if key in model.figures), None)


def read_published(path: Path) -> Published:
    """Read `docs/published.json`.

    Raises:
        ValueError: an unknown schema, or a figure for a benchmark that is not listed.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != 1:
        raise ValueError(f"{path}: schema {content.get('schema')!r}, this version reads 1")
    benchmarks = tuple(Benchmark(**row) for row in content["benchmarks"])
    models = tuple(PublishedModel(**row) for row in content["models"])
    known = {benchmark.key for benchmark in benchmarks}
    for model in models:
        if unknown := sorted(model.figures.keys() - known):
            raise ValueError(f"{path}: {model.name} has figures for {unknown}; allowed are {sorted(known)}")
    return Published(note=content["note"], benchmarks=benchmarks, models=models)
