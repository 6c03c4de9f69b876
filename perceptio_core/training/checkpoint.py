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
from safetensors.torch import load_file, save_file
from torch import nn

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
    keep: int = 2,
) -> Path:
    """Write `folder/step-XXXXXXXX` atomically, drop all but the newest `keep`, return its path.

    Args:
        folder: the run's folder for checkpoints.
        parameters: name -> parameter of everything that trains.
        optimizer: over exactly these parameters.
        progress: where the run stands.
        keep: checkpoints that remain, >= 1.
    """
    final = folder / f"step-{progress.step:08d}"
    temporary = folder / f".{final.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    slots = {
        f"{name}//{slot}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for slot, value in optimizer.state[parameter].items()
    }
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, temporary / "parameters.safetensors")
    save_file(slots, temporary / "optimizer.safetensors")
    state = {"schema": SCHEMA, "step": progress.step, "seconds": progress.seconds}
    (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for path in temporary.iterdir():
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    _flush(folder)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(
    *, folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Load the newest checkpoint of `folder` into parameters and optimizer; None if there is none.

    Raises:
        ValueError: the checkpoint's parameters are not the model's (names or shapes), or its schema is unknown.
    """
    complete = _complete(folder)
    if not complete:
        return None
    path = complete[-1]
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["schema"] != SCHEMA:
        raise ValueError(f"{path / 'state.json'}: schema {state['schema']}, this version reads {SCHEMA}")
    saved = load_file(path / "parameters.safetensors")
    if saved.keys() != parameters.keys():
        odd = sorted(saved.keys() ^ parameters.keys())
        raise ValueError(f"{path}: {len(odd)} parameters are in the checkpoint or the model alone, such as {odd[0]}")
    for name, parameter in parameters.items():
        if saved[name].shape != parameter.shape:
            raise ValueError(f"{path}: {name} has shape {tuple(saved[name].shape)}, the model {tuple(parameter.shape)}")
        parameter.data.copy_(saved[name])
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, slot = key.rpartition("//")
        parameter = parameters[name]
        optimizer.state[parameter][slot] = value.to(parameter.device)
    return Progress(step=state["step"], seconds=state["seconds"])


def has_checkpoint(folder: Path) -> bool:
    """Whether `load_checkpoint` would find one."""
    return bool(_complete(folder))


def _complete(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def _flush(path: Path) -> None:
    """Force a file or folder to the disk, so that the rename cannot overtake the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
