"""Checkpoint folders: weights in safetensors or tensors-only pickles, whole or in shards, and their JSON configurations.

Nothing here runs code of a checkpoint: pickles are read with ``weights_only=True``, Python files are never looked at.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceptio_core.weights import read_safetensors

_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_REQUIRED = object()


def read_weights(source: Path, *, under: Sequence[str] = ()) -> dict[str, Tensor]:
    """Weights of a checkpoint on the CPU.

    Args:
        source: a file (.safetensors, .pt, .pth, .bin), or a folder with one of the files that `transformers` writes; with
            an index, the shards that it lists.
        under: keys under which a pickle may keep its weights; without one of them, they are its top level.

    Raises:
        ValueError: there is no such file, it cannot be read, it holds other things than tensors, or an index and its
            shards disagree; names the file and the keys.
    """
    if source.is_file():
        return _read_file(source, under)
    present = [source / name for name in _NAMES if (source / name).is_file()]
    if not present:
        raise ValueError(f"{source}: holds no weights; expected is a file, or a folder with one of {', '.join(_NAMES)}")
    first = present[0]
    if first.suffix != ".json":
        return _read_file(first, under)
    where: dict[str, str] = _mapping(_read_json(first).get("weight_map"), first, "weight_map")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise ValueError(f"{first}: weight_map names {name!r}; allowed are files of the same folder")
        weights.update(_read_file(source / name, under))
    if differing := sorted(where.keys() ^ weights.keys()):
        raise ValueError(f"{first}: index and shards differ in {len(differing)} keys: {', '.join(differing)}")
    return weights


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a JSON configuration, for reading values with a check.

    Attributes:
        path: of the file.
        prefix: keys above this part, each with a dot behind it.
        values: of this part.
    """

    path: Path
    prefix: str
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Section:
        """The whole of a file.

        Raises:
            ValueError: it is missing or not a JSON object.
        """
        return cls(path=path, prefix="", values=_read_json(path))

    def section(self, key: str) -> Section:
        """The part below `key`, which must be there."""
        values = _mapping(self.values.get(key), self.path, f"{self.prefix}{key}")
        return Section(path=self.path, prefix=f"{self.prefix}{key}.", values=values)

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """A value of one of the types `kind`; `default`, where there is one, for a value that is absent or null.

        Raises:
            ValueError: it is absent without a default, or of another type; names file, key and type.
        """
        value = self.values.get(key)
        if value is None and default is not _REQUIRED:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.fault(key, " or ".join(allowed.__name__ for allowed in kinds))
        return value

    def one_of(self, key: str, *allowed: Any, default: Any = _REQUIRED) -> Any:
        """A value out of `allowed`; `default`, where there is one, for a value that is absent.

        Raises:
            ValueError: it is another one; names file, key and what is allowed.
        """
        value = self.values.get(key, default)
        if value not in allowed:
            raise self.fault(key, " or ".join(map(repr, allowed)))
        return value

    def fault(self, key: str, allowed: str) -> ValueError:
        """The error for a value that is not supported."""
        given = repr(self.values[key]) if key in self.values else "missing"
        return ValueError(f"{self.path}: {self.prefix}{key} is {given}; allowed is {allowed}")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that becomes `out` when everything went well, and vanishes otherwise.

    Raises:
        ValueError: `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out}: exists already; a conversion writes to a new folder")
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read_file(path: Path, under: Sequence[str]) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise ValueError(f"{path}: not found")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that it cannot or will not read
        # Its refusals come with the advice to let the file run code; the reason alone is told.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition(" Please use")[0].partition("\n")[0]
        raise ValueError(f"{path}: not a file of tensors ({reason or type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected are tensors by name")
    inner = next((content[key] for key in under if isinstance(content.get(key), dict)), content)
    if strange := [str(key) for key, value in inner.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path}: these entries are not tensors: {', '.join(strange)}")
    return dict(inner)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: not found")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    return _mapping(content, path, "the file")


def _mapping(value: Any, path: Path, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} is {'missing' if value is None else repr(value)}; allowed is an object")
    return value
