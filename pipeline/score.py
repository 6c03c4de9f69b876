"""``perceptio score`` and ``perceptio export``: a file of answers scored without the model, or written in an official form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceptio_core.evaluation.benchmarks.benchmark import Benchmark
from perceptio_core.evaluation.benchmarks.catalogue import CATALOGUE, FAMILIES, official
from perceptio_core.evaluation.benchmarks.load import load_benchmark
from perceptio_core.evaluation.interchange.export import export as write
from perceptio_core.evaluation.interchange.predictions import read_predictions
from perceptio_core.evaluation.interchange.rescore import rescore, self_contained
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric
from perceptio_core.params.evaluate import BenchmarkParams


@dataclass(frozen=True, kw_only=True)
class Found:
    """A benchmark, and how its intervals are computed."""

    benchmark: Benchmark
    bootstrap: Bootstrap


def score(name: str, *, predictions: Path, root: Path | None, protocol: str | None, as_json: bool) -> None:
    """Print the metrics of a file of answers.

    Args:
        name: of the benchmark, in the catalogue or in the active profile.
        predictions: the answers.
        root: the data root of the official files; None: the answers' own file where that holds the right answers, else the
            active profile's benchmark of this name, asked as `evaluate` asks it.
        protocol: for referring segmentation, by whose rules.
        as_json: print a list of {name, value, low, high, n, protocol}.

    Raises:
        ValueError: no such benchmark, or files that are malformed or do not match.
    """
    if not predictions.exists():
        raise ValueError(f"{predictions}: no such file or folder")
    found = find_benchmark(name, predictions=predictions, root=root, protocol=protocol)
    metrics = rescore(found.benchmark, predictions, bootstrap=found.bootstrap)
    if as_json:
        print(json.dumps([metric.to_json() for metric in metrics], indent=2, allow_nan=False, ensure_ascii=False))
    else:
        print("\n".join(_lines(metrics)))


def export(name: str, *, predictions: Path, root: Path | None, out: Path) -> None:
    """Write a file of answers in the form that the benchmark's own tools take; arguments as `score` has them.

    Raises:
        ValueError: as `score`; or `out` exists, or has a suffix that is none of this benchmark's.
    """
    if not predictions.exists():
        raise ValueError(f"{predictions}: no such file or folder")
    benchmark = find_benchmark(name, predictions=predictions, root=root, protocol=None).benchmark
    write(benchmark, read_predictions(predictions, benchmark), out)
    print(out)


def find_benchmark(name: str, *, predictions: Path, root: Path | None, protocol: str | None) -> Found:
    """The benchmark that a file of answers belongs to; arguments as `score` has them."""
    if root is not None:
        params = _by_rules_of(official(name, root=root), protocol)
        return Found(benchmark=load_benchmark(params, root=root, pictures=False), bootstrap=Bootstrap())
    if benchmark := self_contained(name, predictions):
        if protocol is not None:
            raise ValueError(f"--protocol is for referring segmentation; {name} has one")
        return Found(benchmark=benchmark, bootstrap=Bootstrap())
    return _of_profile(name, protocol)


def _of_profile(name: str, protocol: str | None) -> Found:
    from perceptio_core.data.manifest.manifest import data_root
    from perceptio_core.params.profile import load_profile
    from stages.common import StagePaths

    profile = load_profile()
    entries = {entry.label: entry for entry in profile.evaluate.benchmarks}
    if name not in entries:
        raise ValueError(
            f"the active profile {profile.name} has no benchmark {name!r}, but {', '.join(entries)}; "
            f"with --root DIR, the folder of the official files, there are {', '.join([*CATALOGUE, *FAMILIES])}"
        )
    root = data_root(profile.sources, StagePaths(profile.name).out("sources"))
    benchmark = load_benchmark(_by_rules_of(entries[name], protocol), root=root)
    return Found(
        benchmark=benchmark, bootstrap=Bootstrap(samples=profile.evaluate.bootstrap_samples, seed=profile.evaluate.seed)
    )


def _by_rules_of(params: BenchmarkParams, protocol: str | None) -> BenchmarkParams:
    if protocol is None:
        return params
    if params.kind != "refer":
        raise ValueError(f"--protocol is for referring segmentation; {params.label} has one")
    values: dict[str, Any] = {**params.model_dump(mode="json"), "protocol": protocol}
    return BenchmarkParams.from_mapping(values, where="--protocol")


def _lines(metrics: list[Metric]) -> list[str]:
    width = max(len(metric.name) for metric in metrics)
    lines = []
    for metric in metrics:
        interval = "" if metric.low is None else f" [{metric.low:.2f}, {metric.high:.2f}]"
        lines.append(f"{metric.name:<{width}}  {metric.value:7.2f}{interval:<18}  n = {metric.n:<6} {metric.protocol}")
    return lines
