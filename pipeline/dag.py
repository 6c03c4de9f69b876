"""The pipeline as DVC knows it: its stages in order, what is stale, and what dvc.lock says of a finished stage."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import yaml
from dvc.repo import Repo

LOCK_FILE = Path("dvc.lock")


@dataclass(frozen=True, kw_only=True)
class StageNode:
    """One stage of dvc.yaml; a stage with variants is one node per variant, e.g. ``cotrain@full``."""

    name: str
    upstream: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The name in the letters that Prefect allows in an artifact's key."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())


@dataclass(frozen=True, kw_only=True)
class LockedOutput:
    """An output as dvc.lock records it."""

    path: str
    md5: str
    size: int
    files: int


def stages_in_order() -> list[StageNode]:
    """Every stage of dvc.yaml, each after all those that it reads from."""
    with _repo() as repo:
        graph = repo.index.graph  # an edge leads from a stage to one that it reads from
        order = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        return [
            StageNode(name=stage.addressing, upstream=tuple(sorted(other.addressing for other in graph.successors(stage))))
            for stage in order
        ]


def stale_stages() -> list[str]:
    """The stages that `dvc repro` would run or restore, in no order; empty when everything is up to date."""
    with _repo() as repo:
        return sorted(repo.status())


def locked_outputs(stage: str) -> list[LockedOutput]:
    """What dvc.lock says of a stage's outputs; empty for a stage that has never finished."""
    if not LOCK_FILE.is_file():
        return []
    lock = yaml.safe_load(LOCK_FILE.read_text(encoding="utf-8"))
    outputs: list[dict[str, Any]] = lock.get("stages", {}).get(stage, {}).get("outs", [])
    return [
        LockedOutput(path=out["path"], md5=out["md5"], size=out.get("size", 0), files=out.get("nfiles", 1)) for out in outputs
    ]


@contextlib.contextmanager
def _repo() -> Iterator[Repo]:
    logging.getLogger("dvc").setLevel(logging.ERROR)  # its warnings belong to `dvc` on the command line
    with contextlib.closing(Repo()) as repo:
        yield repo
