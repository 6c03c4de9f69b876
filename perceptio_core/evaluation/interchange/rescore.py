"""Scoring a file of answers without the model: anyone's predictions, by the rules that `evaluate` applies to its own."""

from __future__ import annotations

from pathlib import Path

from perceptio_core.evaluation.benchmarks.benchmark import Benchmark, unparsed_share
from perceptio_core.evaluation.benchmarks.choice_table import ANSWER, COLUMNS, read_table
from perceptio_core.evaluation.benchmarks.mmbench import MMBench
from perceptio_core.evaluation.benchmarks.mme import MME
from perceptio_core.evaluation.interchange.predictions import read_predictions
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.metrics import Metric


def rescore(benchmark: Benchmark, predictions: Path, *, bootstrap: Bootstrap) -> list[Metric]:
    """The benchmark's metrics: headline, baselines, share of unparsed answers, then their parts.

    Raises:
        ValueError: the predictions are malformed or not those of this benchmark.
    """
    scores = benchmark.score(read_predictions(predictions, benchmark), bootstrap=bootstrap)
    if not scores.headline:
        raise ValueError(f"{predictions}: the right answers to this benchmark are not public; perceptio export writes the file")
    return [*scores.headline, *scores.baselines, *unparsed_share([scores], bootstrap), *scores.breakdown]


def self_contained(name: str, predictions: Path) -> Benchmark | None:
    """The benchmark whose questions and right answers stand in the results file itself; None if they do not.

    MME's results folder and the tables that MMBench's and VLMEvalKit's tools write are such. Their answers are taken as they
    stand there: to check somebody's score, compare with the official files.

    Raises:
        ValueError: the file is malformed.
    """
    if name == "mme" and predictions.is_dir():
        return MME(predictions, pictures=False)
    if name.startswith("mmbench") and predictions.suffix in (".tsv", ".xlsx"):
        records = read_table(predictions)
        if records and {*COLUMNS, ANSWER} <= records[0].keys():
            return MMBench(predictions, pictures=False)
        raise ValueError(f"{predictions}: holds no right answers; --root DIR names the folder with the official files")
    return None
