"""Learning rate over the steps: linear warm-up, then a half cosine down to a floor (Sa2VA's schedule, floor ours)."""

import math


def rate_factor(*, step: int, steps: int, warmup: float, floor: float, start: float = 0.0) -> float:
    """Factor in [0, 1] on the base learning rate at `step` of `steps` (0-based).

    A pure function of the step, so a resumed run needs no scheduler state. The first step already learns
    (factor 1 / warm-up steps) and the last step of the warm-up has factor 1.

    Args:
        step: 0-based optimizer step, 0 <= step < steps.
        steps: length of the run.
        warmup: share of the run spent warming up, >= 0; from 1 on the warm-up does not end.
        floor: factor that the cosine ends near, in [0, 1].
        start: share of the run before the schedule begins, in [0, 1); the factor is 0 until then.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is outside the run of {steps} steps")
    start_step, warmup_steps = round(start * steps), round(warmup * steps)
    if step < start_step:
        return 0.0
    step, steps = step - start_step, steps - start_step
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
