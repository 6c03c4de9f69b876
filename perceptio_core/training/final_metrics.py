"""The metrics of a finished training run, read off its curves."""

from collections.abc import Mapping
from pathlib import Path

from perceptio_core.data.loading.mixture import Drawn
from perceptio_core.metrics import Metric
from perceptio_core.training.curve_files import read_curve

FINAL_SHARE = 0.1


def training_metrics(*, curves: Path, steps: int, batch_size: int, drawn: Mapping[str, Drawn]) -> list[Metric]:
    """Mean of every training loss over the last tenth of the steps, last validation losses, and what was drawn of each task.

    Reading the curves, rather than remembering the losses, gives the same numbers however often the run was resumed.
    """
    metrics = [
        Metric(name="steps", value=steps, protocol="optimizer steps"),
        Metric(name="batch_size", value=batch_size, protocol="samples a step, over all ranks"),
    ]
    for path in sorted((curves / "plots" / "metrics").glob("*/*.tsv")):
        _, values = read_curve(path)
        is_val = path.parent.name == "val"
        last = values[-1:] if is_val else values[-max(1, round(FINAL_SHARE * len(values))) :]
        protocol = "last validation" if is_val else f"mean of the last {len(last)} steps"
        metrics.append(Metric(name=f"{path.parent.name}_{path.stem}", value=sum(last) / len(last), protocol=protocol))
    for task, of_task in drawn.items():
        metrics += [
            Metric(name=f"drawn_{task}", value=of_task.draws, protocol=f"samples of {task} in training"),
            Metric(name=f"epochs_{task}", value=of_task.epochs, protocol=f"how often each sample of {task} came"),
            Metric(name=f"share_{task}", value=of_task.share, protocol=f"share of {task} in all samples, 0 to 1"),
            Metric(name=f"wanted_share_{task}", value=of_task.wanted, protocol="the share that the mixture asks for"),
        ]
    return metrics
