"""What is true of this machine alone, from a file that neither git nor DVC tracks: how much may run at once.

``machine.yaml`` beside dvc.yaml, or the file that the variable PERCEPTIO_MACHINE names; without one the defaults hold.
Nothing in it changes what a stage computes, so a change re-runs nothing.
"""

import contextlib
import os
import queue
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from perceptio_core.params.base import Section, read_yaml

MACHINE_FILE = Path("machine.yaml")
VARIABLE = "PERCEPTIO_MACHINE"


class Limits(Section):
    """How many stages run at once, by what they need (``meta: {needs: ...}`` of a stage in dvc.yaml).

    Attributes:
        gpu: stages that compute with a model, on CPUs too. Above 1, each gets an equal share of the GPUs to itself.
        cpu: all others.
    """

    gpu: int = Field(default=1, ge=1)
    cpu: int = Field(default=2, ge=1)


class Machine(Section):
    """The whole file."""

    limits: Limits = Limits()


def read_machine() -> Machine:
    """This machine's settings.

    Raises:
        ValueError: the file has an unknown key, a wrong type or a refused value, or the named one is missing; says what is
            allowed.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else MACHINE_FILE
    if not path.is_file():
        if named:
            raise ValueError(f"{VARIABLE} names {path}, which is not a file")
        return Machine()
    values = read_yaml(path)
    if unknown := values.keys() - Machine.model_fields.keys():
        raise ValueError(f"{path}: {sorted(unknown)[0]}: unknown key; allowed are {', '.join(Machine.model_fields)}")
    return Machine(limits=Limits.from_mapping(values.get("limits", {}), where=f"{path}: limits"))


class Slots:
    """The places that running stages take; a stage waits until one of its kind is free."""

    def __init__(self, limits: Limits) -> None:
        """Raises ValueError if fewer GPUs are here than stages that would share them."""
        self._free: dict[str, queue.SimpleQueue[dict[str, str]]] = {}
        for needs, count in limits.model_dump().items():
            shares = _gpu_shares(count) if needs == "gpu" and count > 1 else [{}] * count
            self._free[needs] = queue.SimpleQueue()
            for share in shares:
                self._free[needs].put(share)

    @contextlib.contextmanager
    def taken(self, needs: str) -> Iterator[dict[str, str]]:
        """Take a place; yields what it adds to the stage's environment."""
        place = self._free[needs].get()
        try:
            yield place
        finally:
            self._free[needs].put(place)


def _gpu_shares(count: int) -> list[dict[str, str]]:
    """The GPUs of this machine in `count` equal parts, as CUDA_VISIBLE_DEVICES; without any GPU nothing is to be shared."""
    devices = _gpus()
    if not devices:
        return [{} for _ in range(count)]
    if len(devices) < count:
        raise ValueError(f"limits.gpu: {count} stages at once, but {len(devices)} GPUs; allowed are 1 to {len(devices)}")
    size = len(devices) // count
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[part * size : (part + 1) * size])} for part in range(count)]


def _gpus() -> list[str]:
    """The GPUs that a stage would see, by the names that CUDA_VISIBLE_DEVICES takes."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device.strip()]
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listing.splitlines()))]
