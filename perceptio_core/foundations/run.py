"""The bookkeeping of a pretraining run: device, optimiser, batches made ahead, checkpoints, progress (ours)."""

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from perceptio_core.schedule import rate_factor
from perceptio_core.weights import load_exactly, read_safetensors, save_tensors

log = logging.getLogger(__name__)
CHECKPOINT_EVERY = 200
REPORT_EVERY = 50
LOSS = "loss"
AHEAD = 4  # batches that each worker has ready
FLOOR = 0.05  # of the peak learning rate
Batch = TypeVar("Batch")


def pretraining_device() -> torch.device:
    """The GPU if there is one, where float32 products are computed in TF32 from here on; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def begin(parser: argparse.ArgumentParser, module: str, *, scenes: int = 64000) -> tuple[argparse.Namespace, str]:
    """Add the arguments that all pretraining commands share, parse, start the log; also the command with what it was given."""
    parser.add_argument("--out", type=Path, default=Path("foundations/mini"), help="receives the model's folder (%(default)s)")
    parser.add_argument("--scenes", type=int, default=scenes, help="training scenes, rendered once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and draws (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches; 0: this one does (%(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    same = ("out", "threads", "workers")  # whatever these are, the weights come out alike
    given = {name: value for name, value in vars(arguments).items() if value != parser.get_default(name) and name not in same}
    options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in given.items())
    return arguments, f"python -m perceptio_core.foundations.{module}{options}"


def hardware(workers: int) -> str:
    """What trains, for the model card."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {workers} processes preparing batches"
    return f"{torch.get_num_threads()} thread(s) of a server CPU"


def seconds_of(work: Path) -> float:
    """What the run with this work folder has taken so far, over all attempts."""
    return float(json.loads((work / "state.json").read_text(encoding="utf-8"))["seconds"])


class PretrainingRun:
    """Optimiser, schedule and resumable state of named modules.

    `batches` yields the steps still to do; the caller computes a loss and hands it to `update`. Checkpoints lie in
    `work`: `<name>.safetensors` a module, `optimizer.pt` (tensors only, loaded with weights_only) and `state.json`.

    Args:
        modules: what is trained and kept, by name; moved to `device` in place.
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
        self.device = pretraining_device()
        self.modules, self.steps, self.work = {name: module.to(self.device) for name, module in modules.items()}, steps, work
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
            fused=self.device.type == "cuda",  # on CPUs its rounding depends on where tensors lie: a resumed run would differ
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda i: rate_factor(step=min(i, steps - 1), steps=steps, warmup=warmup / steps, floor=FLOOR),
        )
        self.step, self.seconds = 0, 0.0
        work.mkdir(parents=True, exist_ok=True)
        if (work / "state.json").exists():
            self._load()

    def batches(self, make: Callable[[int], Batch], *, workers: int) -> Iterator[tuple[int, Batch]]:
        """Each step that is not done yet, with its batch on the run's device.

        Args:
            make: makes the batch of a step, nested tuples and mappings of CPU tensors, from nothing but the step.
            workers: processes that make batches ahead; 0 makes them in this one.
        """
        loader = DataLoader(
            _Made(make, self.steps),
            batch_size=None,
            sampler=range(self.step, self.steps),
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
        )
        self._means: dict[str, Tensor] = {}
        first, begun = self.step, time.perf_counter()
        mark = begun
        for batch in loader:
            yield self.step, send_to_device(batch, self.device, non_blocking=True)
            self.step += 1
            now = time.perf_counter()
            self.seconds += now - mark
            mark = now
            if self.step % REPORT_EVERY == 0 or self.step == self.steps:
                rate = (self.step - first) / (now - begun)
                means = self._report()
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

    def update(self, loss: Tensor, figures: Mapping[str, Tensor | float]) -> None:
        """One optimiser step on `loss`; `figures` join the running means that are logged, but for those that are NaN."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        for name, value in {LOSS: loss, **figures}.items():
            new = torch.as_tensor(value).detach().float()
            old = self._means.get(name, new)
            mean = 0.95 * old + 0.05 * new
            # A loss that was once not finite stays so and shows; of a figure that a batch says nothing of, the mean stays.
            self._means[name] = mean if name == LOSS else torch.where(new.isnan(), old, torch.where(old.isnan(), new, mean))

    def save(self) -> None:
        """Write a checkpoint; state.json is written last and names the step that the other files belong to."""
        for name, module in self.modules.items():
            save_tensors(module.state_dict(), self.work / f"{name}.safetensors")
        torch.save(
            {"optimizer": self.optimizer.state_dict(), "schedule": {"last_epoch": self.schedule.last_epoch}},
            self.work / "optimizer.pt",
        )
        (self.work / "state.json").write_text(json.dumps({"step": self.step, "seconds": self.seconds}))

    def _report(self) -> str:
        """The running means as text; here, where the GPU is waited for anyway, a loss gone wrong is found."""
        means = {name: float(value) for name, value in self._means.items()}
        if not math.isfinite(means[LOSS]):
            raise FloatingPointError(f"the loss became {means[LOSS]} in the {REPORT_EVERY} steps before step {self.step}")
        return " ".join(f"{name}={value:.3f}" for name, value in means.items())

    def finish(self) -> None:
        """Write the final state; the modules come back to the CPU."""
        self.save()
        for module in self.modules.values():
            module.cpu()

    def _load(self) -> None:
        state = json.loads((self.work / "state.json").read_text())
        for name, module in self.modules.items():
            weights = self.work / f"{name}.safetensors"
            load_exactly(module, read_safetensors(weights), source=weights)
        saved = torch.load(self.work / "optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.last_epoch = saved["schedule"]["last_epoch"]
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("resuming at step %d", self.step)


class _Made(Dataset[Any]):
    """The batches of steps 0 to `steps`, made when they are asked for."""

    def __init__(self, make: Callable[[int], Any], steps: int) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


def _as_it_is(batch: Any) -> Any:
    return batch
