"""From the parameters to the numbers: every configured benchmark asked, scored and written down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from perceptio_core.data.images import MAX_PIXELS
from perceptio_core.engine import Engine
from perceptio_core.evaluation.benchmarks.benchmark import Answer, Benchmark, Scores, unparsed_share
from perceptio_core.evaluation.benchmarks.load import load_benchmark
from perceptio_core.evaluation.running.answer_rows import to_row
from perceptio_core.evaluation.running.depth_codes import CodeMaker, pictured
from perceptio_core.evaluation.running.panel_questions import panel_rows
from perceptio_core.evaluation.running.runner import Batch, Predict, answers_of, ask, ask_batch, unanswered
from perceptio_core.evaluation.statistics.bootstrap import Bootstrap
from perceptio_core.jsonl import write_jsonl
from perceptio_core.metrics import Metric
from perceptio_core.params.evaluate import BenchmarkParams, EvaluateParams
from perceptio_core.progress import track

_log = logging.getLogger(__name__)


class Asker:
    """Answers batches of benchmarks, each as its entry in the parameters has it.

    Args:
        predict: the model.
        params: which benchmarks, and how.
        codes: what stands in for the model's depth codes where an entry wants it.
    """

    def __init__(self, predict: Predict, params: EvaluateParams, codes: CodeMaker) -> None:
        self._predict, self._params, self._codes = predict, params, codes
        self._entries = {entry.label: entry for entry in params.benchmarks}

    def __call__(self, batch: Batch) -> list[Answer]:
        """The answers to a batch, in its order."""
        entry = self._entries[batch.label]
        return ask_batch(
            batch,
            self._predict,
            max_pixels=MAX_PIXELS,
            gray=entry.picture == "gray",
            codes=None if entry.codes == "predicted" else partial(self._codes.codes, entry.codes),
            segment=entry.segment,
            depth=entry.depth if entry.codes == "predicted" else True,
            max_new_tokens=self._params.max_new_tokens,
        )


def evaluate(
    engine: Engine,
    make: Callable[[], Callable[[Batch], list[Answer]]],
    params: EvaluateParams,
    *,
    variant: str,
    root: Path,
    journals: Path,
    out: Path,
) -> list[Metric]:
    """Run the suite and write predictions/, quarantine.jsonl, breakdown.json's rows and panels.jsonl into `out`.

    Args:
        engine: asks the questions.
        make: gives what answers a batch: an `Asker`.
        params: which benchmarks, and how.
        variant: name of the model's variant; benchmarks that are not meant for it are left out.
        root: data root, below which the benchmarks lie.
        journals: folder of the answers so far; survives a kill.
        out: folder of the results.

    Returns:
        The headline metrics.
    """
    chosen = [entry for entry in params.benchmarks if entry.is_for(variant)]
    # All files are read before the first question is asked: a broken one is found now, not in an hour.
    benchmarks = [(entry, load_benchmark(entry, root=root)) for entry in chosen]
    batches: list[Batch] = []
    for entry, benchmark in benchmarks:
        shown = [None] * len(benchmark.items) if entry.codes == "predicted" else pictured(entry.codes, benchmark.items)
        batches += unanswered(entry.label, benchmark.items, shown, journals=journals, batch_size=params.batch_size)
    if batches:
        left = sum(len(batch.items) for batch in batches)
        for _ in track(ask(engine, make, batches, journals=journals), total=left, label="evaluate", unit="questions"):
            pass
    bootstrap = Bootstrap(samples=params.bootstrap_samples, seed=params.seed)
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    headline: list[Metric] = []
    breakdown: list[Metric] = []
    plain: list[Scores] = []
    passes: list[int] = []
    quarantine: list[dict[str, Any]] = []
    panels: list[dict[str, Any]] = []
    for entry, benchmark in benchmarks:
        known = answers_of(entry.label, journals=journals)
        given = [known[item.item_id] for item in benchmark.items]
        answers = {answer.item_id: answer for answer in given}
        score = benchmark.score(answers, bootstrap=bootstrap)
        if entry.is_control:
            renamed = [_renamed(metric, entry) for metric in score.headline]
            headline += [metric for metric in renamed if metric.name == f"{entry.name}_{score.main}"]
            breakdown += [metric for metric in renamed if metric.name != f"{entry.name}_{score.main}"]
        else:
            headline += score.headline + score.baselines
            breakdown += score.breakdown
            plain.append(score)
            passes += [answer.passes for answer in given if answer.passes is not None and answer.depth_codes is not None]
        _write_predictions(out / "predictions" / f"{entry.label}.jsonl", benchmark, answers, score)
        quarantine += [{"file": f"{entry.path}: {answer.item_id}", "reason": answer.error} for answer in given if answer.error]
        panels += panel_rows(entry.label, benchmark.items, answers, correct=score.correct, root=root, count=entry.panels)
    for row in quarantine:
        _log.warning("%s: %s (counts as wrong)", row["file"], row["reason"])
    write_jsonl(out / "quarantine.jsonl", quarantine)
    write_jsonl(out / "panels.jsonl", panels)
    write_jsonl(out / "breakdown.jsonl", (metric.to_json() for metric in breakdown))
    return headline + unparsed_share(plain, bootstrap) + _decode_passes(passes)


def _decode_passes(passes: Sequence[int]) -> list[Metric]:
    """The metric ``decode_passes``; none where no answer has a depth span."""
    if not passes:
        return []
    protocol = "forward passes of the language model for an answer with depth codes of its own, mean"
    return [
        Metric(name="decode_passes", value=sum(passes) / len(passes), low=None, high=None, n=len(passes), protocol=protocol)
    ]


def _renamed(metric: Metric, entry: BenchmarkParams) -> Metric:
    asked = {"segment": entry.segment, "depth": entry.depth}
    ways = [f"{span} forced" if wish else f"no {span} span" for span, wish in asked.items() if wish is not None]
    ways += [f"{entry.codes} depth codes in place of the model's own"] if entry.codes != "predicted" else []
    ways += ["a gray picture in place of the question's own"] if entry.picture == "gray" else []
    return replace(metric, name=f"{entry.name}_{metric.name}", protocol="; ".join([metric.protocol, *ways]))


def _rounded(correct: float | None) -> float | None:
    return None if correct is None else round(correct, 6)


def _write_predictions(path: Path, benchmark: Benchmark, answers: dict[str, Answer], score: Scores) -> None:
    write_jsonl(
        path,
        (
            {
                **to_row(answers[item.item_id]),
                "question": item.question,
                "expected": item.expected,
                "correct": _rounded(score.correct[item.item_id]),
            }
            for item in benchmark.items
        ),
    )
