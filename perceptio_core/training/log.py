"""What a run in training says: what trains at the start, then a line every few seconds."""

import logging
import time
from collections.abc import Mapping

from accelerate import Accelerator

from perceptio_core.progress import duration
from perceptio_core.training.optimizer import ParameterGroup

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0


def line(losses: Mapping[str, float]) -> str:
    """Losses as one line of text."""
    return ", ".join(f"{name} {value:.4g}" for name, value in losses.items())


def announce(*, groups: list[ParameterGroup], steps: int, batch_size: int, accelerator: Accelerator, step: int) -> None:
    """Say what trains, on what, and from which step."""
    for group in groups:
        count = sum(parameter.numel() for parameter in group.parameters.values())
        logger.info("%s: %s parameters train at %.3g", group.name, f"{count:,}", group.rate)
    logger.info(
        "%s on %d x %s, %s; %s",
        f"{steps} steps of {batch_size} samples",
        accelerator.num_processes,
        accelerator.device,
        "bf16 autocast" if accelerator.mixed_precision == "bf16" else "float32",
        f"resuming after step {step}" if step else "starting",
    )


class Reporter:
    """A log line every few seconds: how far, each loss, samples per second, time left."""

    def __init__(self, *, steps: int, batch_size: int, step: int) -> None:
        self._steps, self._batch_size = steps, batch_size
        self._first = step
        self._started = self._last = time.monotonic()

    def step(self, *, done: int, losses: Mapping[str, float], final: bool) -> None:
        """Note that `done` steps are done, and write a line if it is time for one."""
        now = time.monotonic()
        if now - self._last < LOG_SECONDS and not final and done != self._first + 1:
            return
        self._last = now
        per_step = (now - self._started) / (done - self._first)
        logger.info(
            "step %d/%d: %s; %.1f samples/s, %s left",
            done,
            self._steps,
            line(losses),
            self._batch_size / per_step,
            duration(per_step * (self._steps - done)),
        )
