"""The metrics of a finished training run, read off its curves."""

from pathlib import Path

from perceptio_core.training.curves import read_curve
from perceptio_core.training.loop import TrainingResult

FINAL_SHARE = 0.1


def training_metrics(*, curves: Path, result: TrainingResult, steps: int, batch_size: int) -> dict[str, float | int | str]:
    """Flat metrics: mean of every training loss over the last tenth of the steps, last validation losses, cost.

    Reading the curves, rather than remembering the losses, gives the same numbers however often the run was resumed.
    """
    metrics: dict[str, float | int | str] = {
        "steps": steps,
        "batch_size": batch_size,
        "seconds": round(result.seconds, 1),
        "samples_per_second": round(result.samples_per_second, 2),
        "peak_memory_gib": round(result.peak_memory_gib, 3),
        "precision": result.precision,
        "world_size": result.world_size,
    }
    folder = curves / "plots" / "metrics"
    for path in sorted(folder.glob("*/*.tsv")):
        _, values = read_curve(path)
        last = values[-1:] if path.parent.name == "val" else values[-max(1, round(FINAL_SHARE * len(values))) :]
        metrics[f"{path.parent.name}_{path.stem}"] = round(sum(last) / len(last), 6)
    return metrics
