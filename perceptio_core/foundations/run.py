"""The bookkeeping of a pretraining run: AdamW, warm-up and cosine, checkpoints, progress (ours)."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)
CHECKPOINT_EVERY = 200
REPORT_EVERY = 50


def seconds_of(work: Path) -> float:
    """What the run with this work folder has taken so far, over all attempts."""
    return float(json.loads((work / "state.json").read_text(encoding="utf-8"))["seconds"])


class PretrainingRun:
    """Optimiser, schedule and resumable state of named modules.

    `steps_left` yields the steps still to do; the caller computes a loss and hands it to `update`. Checkpoints lie in
    `work`: `<name>.safetensors` a module, `optimizer.pt` (tensors only, loaded with weights_only) and `state.json`.

    Args:
        modules: what is trained and kept, by name.
        steps, lr, warmup, weight_decay: of the schedule and AdamW.
        work: folder of the checkpoints.
        slow, slow_rate: a part of the modules whose learning rate is this share of `lr`.
    """

    def __init__(
        self,
        *,
        modules: Mapping[str, nn.Module],
        steps: int,
        lr: float,
        warmup: int,
        weight_decay: float,
        work: Path,
        slow: nn.Module | None = None,
        slow_rate: float = 1.0,
    ) -> None:
        self.modules, self.steps, self.work = dict(modules), steps, work
        parameters = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        self.parameters = parameters
        slowly = {id(p) for p in slow.parameters()} if slow else set()
        groups = [
            {
                "params": [p for p in parameters if (p.ndim > 1) == matrix and (id(p) in slowly) == is_slow],
                "weight_decay": weight_decay * matrix,
                "lr": lr * (slow_rate if is_slow else 1.0),
            }
            for is_slow in (False, True)
            for matrix in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=(0.9, 0.98),
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda i: min((i + 1) / warmup, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, i / steps)))),
        )
        self.step, self.seconds = 0, 0.0
        work.mkdir(parents=True, exist_ok=True)
        if (work / "state.json").exists():
            self._load()

    def steps_left(self) -> Iterator[int]:
        """Yield the number of each step that is not done yet."""
        self._means: dict[str, float] = {}
        first, begun = self.step, time.perf_counter()
        mark = begun
        while self.step < self.steps:
            yield self.step
            self.step += 1
            now = time.perf_counter()
            self.seconds += now - mark
            mark = now
            if self.step % REPORT_EVERY == 0 or self.step == self.steps:
                rate = (self.step - first) / (now - begun)
                means = " ".join(f"{k}={v:.3f}" for k, v in self._means.items())
                log.info(
                    "step %d/%d  %.2f steps/s  ETA %.0f s  %s",
                    self.step,
                    self.steps,
                    rate,
                    (self.steps - self.step) / rate,
                    means,
                )
            if self.step % CHECKPOINT_EVERY == 0 and self.step < self.steps:
                self.save()

    def update(self, loss: Tensor, figures: Mapping[str, float]) -> None:
        """One optimiser step on `loss`; `figures` join the running means that are logged."""
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        for name, value in {"loss": loss.item(), **figures}.items():
            if not math.isnan(value):
                self._means[name] = value if name not in self._means else 0.95 * self._means[name] + 0.05 * value

    def save(self) -> None:
        """Write a checkpoint; state.json is written last and names the step that the other files belong to."""
        for name, module in self.modules.items():
            save_file(module.state_dict(), self.work / f"{name}.safetensors")
        torch.save(
            {"optimizer": self.optimizer.state_dict(), "schedule": {"last_epoch": self.schedule.last_epoch}},
            self.work / "optimizer.pt",
        )
        (self.work / "state.json").write_text(json.dumps({"step": self.step, "seconds": self.seconds}))

    def finish(self) -> None:
        """Write the final state."""
        self.save()

    def _load(self) -> None:
        state = json.loads((self.work / "state.json").read_text())
        for name, module in self.modules.items():
            module.load_state_dict(load_file(self.work / f"{name}.safetensors"))
        saved = torch.load(self.work / "optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.last_epoch = saved["schedule"]["last_epoch"]
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("resuming at step %d", self.step)
