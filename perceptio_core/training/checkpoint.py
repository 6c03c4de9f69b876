"""Checkpoints of a run in progress: what trains, the optimizer's state and the step, and nothing that can be derived.

Learning rates, random states and the data position are pure functions of (seed, step), so they resume exactly without
being stored. Frozen weights come from the foundations again. A checkpoint is one folder `step-00000123/`, written under a
temporary name and renamed, so a killed run never leaves a half one; only safetensors and JSON are written and read.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from perceptio_core.files import naming
from perceptio_core.training.sharding import divided_like, whole
from perceptio_core.weights import read_safetensors, require_shapes, save_tensors

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done; also the next step's index and so the data position.
        seconds: wall-clock seconds spent training so far, over all attempts.
    """

    step: int
    seconds: float


def save_checkpoint(
    *,
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    writes: bool = True,
    keep: int = 2,
) -> None:
    """Write `folder/step-XXXXXXXX` atomically and drop all but the newest `keep`.

    Every rank calls it, since each holds a part where the weights are sharded; one of them writes. A checkpoint does not tell
    how many ranks there were.

    Args:
        folder: the run's folder for checkpoints.
        parameters: name -> parameter of everything that trains.
        optimizer: over exactly these parameters.
        progress: where the run stands.
        writes: this is the rank that does.
        keep: checkpoints that remain, >= 1.

    Raises:
        OSError: the system's, such as a full disk; names the file. The earlier checkpoints are as they were.
    """
    weights = {name: _on_cpu(parameter, wanted=writes) for name, parameter in parameters.items()}
    slots = {
        f"{name}//{slot}": _on_cpu(value, wanted=writes)
        for name, parameter in parameters.items()
        for slot, value in optimizer.state[parameter].items()
    }
    if not writes:
        return
    final = folder / f"step-{progress.step:08d}"
    temporary = folder / f".{final.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = {"schema": SCHEMA, "step": progress.step, "seconds": progress.seconds}
    try:
        for name, tensors in (("parameters", weights), ("optimizer", slots)):
            path = temporary / f"{name}.safetensors"
            with naming(path):
                save_tensors(tensors, path)
                _flush(path)
        path = temporary / "state.json"
        with naming(path):
            path.write_text(json.dumps(state), encoding="utf-8")
            _flush(path)
    except OSError:
        shutil.rmtree(temporary)  # it would only fill the disk
        raise
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    _flush(folder)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(
    *, folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Load the newest checkpoint of `folder` into parameters and optimizer; None if there is none. Every rank calls it.

    Raises:
        ValueError: the checkpoint's parameters are not the model's (names or shapes), or its schema is unknown.
        FileNotFoundError: the checkpoint from which rank 0 goes on cannot be seen from here.
    """
    path = _newest(folder)
    if path is None:
        return None
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["schema"] != SCHEMA:
        raise ValueError(f"{path / 'state.json'}: schema {state['schema']}, this version reads {SCHEMA}")
    load_parameters(path, parameters)
    for key, value in read_safetensors(path / "optimizer.safetensors").items():
        name, _, slot = key.rpartition("//")
        parameter = parameters[name]
        optimizer.state[parameter][slot] = divided_like(value, parameter)
    return Progress(step=state["step"], seconds=state["seconds"])


def load_parameters(path: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Load the parameters of the checkpoint `path`, whole or sharded.

    Raises:
        ValueError: they are not the model's (names or shapes); every one that differs is named.
    """
    saved = read_safetensors(path / "parameters.safetensors")
    require_shapes(saved, expected={name: tuple(one.shape) for name, one in parameters.items()}, source=path)
    for name, parameter in parameters.items():
        parameter.data.copy_(divided_like(saved[name], parameter))


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run that has one."""
    return _complete(folder)[-1]


def has_checkpoint(folder: Path) -> bool:
    """Whether `load_checkpoint` would find one."""
    return bool(_complete(folder))


def _complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that rank 0 sees: a shared disk may show it later to another host."""
    names: list[str | None] = [path.name for path in _complete(folder)[-1:]] or [None]
    if dist.is_initialized():
        dist.broadcast_object_list(names)
    (name,) = names
    if name is None:
        return None
    path = folder / name
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: rank 0 goes on from it, but it is not on this host; they must share the disk")
    return path


def _on_cpu(tensor: torch.Tensor, *, wanted: bool) -> torch.Tensor:
    """The whole tensor, on the CPU. Every rank takes part in gathering it; one that does not want it gets an empty tensor."""
    complete = whole(tensor.detach())
    return complete.cpu().contiguous() if wanted else torch.empty(0)


def _flush(path: Path) -> None:
    """Force a file or folder to the disk, so that the rename cannot overtake the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
