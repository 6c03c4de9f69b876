"""The headline metrics of a run: what the stages measured, under the names that every profile shares."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from perceptio_core.metrics import Metric, read_metrics

MAIN = "full"
"""The variant that a report is about."""


def gather(*, codebook: Path, evaluations: Mapping[str, Path]) -> list[Metric]:
    """All headline metrics: the codebook's, then each variant's.

    Args:
        codebook: metrics of the depth codebook.
        evaluations: variant -> its metrics; those of `full` keep their names, the others' get `<variant>_` in front.

    Raises:
        ValueError: a file of another form, or a name twice.
    """
    metrics = read_metrics(codebook)
    for variant, path in evaluations.items():
        prefix = "" if variant == MAIN else f"{variant}_"
        metrics += [replace(metric, name=prefix + metric.name) for metric in read_metrics(path)]
    names = [metric.name for metric in metrics]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"metrics measured twice: {', '.join(doubled)}")
    return metrics
