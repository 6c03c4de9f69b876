"""From the parameters to the numbers: every configured benchmark asked, scored and written down."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from perceptio_core.evaluation.benchmark import Answer, Benchmark, Metric, Scores, accuracy
from perceptio_core.evaluation.bootstrap import Bootstrap
from perceptio_core.evaluation.hardblink import HardBlink
from perceptio_core.evaluation.jsonl import write_jsonl
from perceptio_core.evaluation.mmbench import MMBench
from perceptio_core.evaluation.mme import MME
from perceptio_core.evaluation.panels import panel_rows
from perceptio_core.evaluation.res import ReferringSegmentation
from perceptio_core.evaluation.runner import Predict, ask, to_row
from perceptio_core.evaluation.seed_bench import SeedImage
from perceptio_core.params.evaluate import BenchmarkParams, EvaluateParams

_log = logging.getLogger(__name__)


def load_benchmark(params: BenchmarkParams, *, root: Path) -> Benchmark:
    """Read one benchmark's official files below the data root.

    Raises:
        ValueError: they are missing or malformed.
    """
    path = root / params.path
    match params.kind:
        case "refer":
            assert params.split is not None  # checked with the parameters
            name = params.name or "res"
            return ReferringSegmentation(
                path,
                split=params.split,
                split_by=params.split_by,
                images=None if params.images is None else root / params.images,
                name=name,
                limit=params.limit,
            )
        case "hardblink":
            return HardBlink(path, limit=params.limit)
        case "mmbench":
            return MMBench(path, split=params.split, limit=params.limit)
        case "seedbench":
            return SeedImage(path, limit=params.limit)
        case "mme":
            return MME(path, limit=params.limit)


def evaluate(predict: Predict, params: EvaluateParams, *, variant: str, root: Path, journals: Path, out: Path) -> list[Metric]:
    """Run the suite and write predictions/, quarantine.jsonl, breakdown.json's rows and panels.jsonl into `out`.

    Args:
        predict: the model.
        params: which benchmarks, and how.
        variant: name of the model's variant; benchmarks that are not meant for it are left out.
        root: data root, below which the benchmarks lie.
        journals: folder of the answers so far; survives a kill.
        out: folder of the results.

    Returns:
        The headline metrics.
    """
    chosen = [entry for entry in params.benchmarks if variant not in entry.except_variants]
    # All files are read before the first question is asked: a broken one is found now, not in an hour.
    benchmarks = [(entry, load_benchmark(entry, root=root)) for entry in chosen]
    bootstrap = Bootstrap(samples=params.bootstrap_samples, seed=params.seed)
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    scores: list[Scores] = []
    quarantine: list[dict[str, Any]] = []
    panels: list[dict[str, Any]] = []
    for entry, benchmark in benchmarks:
        given = ask(
            benchmark.items,
            predict,
            journal=journals / f"{entry.label}.jsonl",
            label=entry.label,
            batch_size=params.batch_size,
            max_new_tokens=params.max_new_tokens,
            max_pixels=params.max_pixels,
            segment=entry.segment,
            depth=entry.depth,
        )
        answers = {answer.item_id: answer for answer in given}
        score = benchmark.score(answers, bootstrap=bootstrap)
        scores.append(score)
        _write_predictions(out / "predictions" / f"{entry.label}.jsonl", benchmark, answers, score)
        quarantine += [{"file": f"{entry.path}: {answer.item_id}", "reason": answer.error} for answer in given if answer.error]
        panels += panel_rows(entry.label, benchmark.items, answers, correct=score.correct, root=root, count=entry.panels)
    for row in quarantine:
        _log.warning("%s: %s (counts as wrong)", row["file"], row["reason"])
    write_jsonl(out / "quarantine.jsonl", quarantine)
    write_jsonl(out / "panels.jsonl", panels)
    write_jsonl(out / "breakdown.jsonl", (metric.to_json() for score in scores for metric in score.breakdown))
    return [metric for score in scores for metric in score.headline] + _unparsed(scores, bootstrap)


def _unparsed(scores: list[Scores], bootstrap: Bootstrap) -> list[Metric]:
    missed, asked = sum(score.unparsed for score in scores), sum(score.parsable for score in scores)
    if asked == 0:
        return []
    flags = [True] * missed + [False] * (asked - missed)
    protocol = f"{missed} of {asked} answers from which no option, yes or no could be read (all count as wrong)"
    return [accuracy(flags, name="unparsed", protocol=protocol, bootstrap=bootstrap, unit="per question")]


def _write_predictions(path: Path, benchmark: Benchmark, answers: dict[str, Answer], score: Scores) -> None:
    write_jsonl(
        path,
        (
            {
                **to_row(answers[item.item_id]),
                "question": item.question,
                "expected": item.expected,
                "correct": round(score.correct[item.item_id], 6),
            }
            for item in benchmark.items
        ),
    )
