"""The pipeline as DVC knows it: its stages in order, what they need, and what is stale.

The stage `code`, which DVC always runs, is none of them: `plan` has it run where a fingerprint has changed.
"""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.scm import SCMError

from perceptio_core.tied import tied
from pipeline import code
from pipeline.machine import Limits


@dataclass(frozen=True, kw_only=True)
class StageNode:
    """One stage of dvc.yaml; a stage with variants is one node per variant, e.g. ``cotrain@full``."""

    name: str
    upstream: tuple[str, ...]
    downstream: tuple[str, ...]
    needs: str
    """What it occupies while it runs, a name of `machine.Limits`: ``meta: {needs: ...}`` in dvc.yaml, or else "cpu"."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run has before it.

    Attributes:
        stages: the wanted stages and all that they read from, each after those that it reads from.
        forced: the stages that run even if nothing has changed.
        stale: the stages that DVC would run or restore as things stand, each with what has changed; empty when everything is up
            to date.
    """

    stages: tuple[StageNode, ...]
    forced: frozenset[str]
    stale: Mapping[str, tuple[str, ...]]

    @property
    def asked(self) -> frozenset[str]:
        """The stages that DVC is asked about in any case; those after them if they make anything new."""
        return self.forced | self.stale.keys()

    def alone(self, *, force: bool) -> "Plan":
        """The forced stages without those that they read from; DVC decides whether they run, unless `force`."""
        nodes = tuple(replace(node, upstream=()) for node in self.stages if node.name in self.forced)
        return Plan(stages=nodes, forced=self.forced if force else frozenset(), stale=dict.fromkeys(self.forced, ()))


def plan(*, wanted: Sequence[str] = (), force: bool = False) -> Plan:
    """What brings the wanted stages up to date, as DVC judges.

    Args:
        wanted: names of stages; ``cotrain`` stands for all its variants. Empty: every stage.
        force: run the wanted stages (not those that they read from) even if nothing has changed.

    Raises:
        ValueError: dvc.yaml has no such stage, or one that says wrongly what it needs; names those that there are.
    """
    if not code.is_current():
        with _repo() as repo:
            repo.reproduce(code.STAGE, single_item=True)
    with _repo() as repo:
        graph = repo.index.graph.copy()  # an edge leads from a stage to one that it reads from
        graph.remove_nodes_from([stage for stage in graph if stage.addressing == code.STAGE])
        order = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        nodes = [
            StageNode(
                name=stage.addressing,
                upstream=tuple(sorted(other.addressing for other in graph.successors(stage))),
                downstream=tuple(sorted(other.addressing for other in graph.predecessors(stage))),
                needs=_needs(stage.addressing, stage.meta),
            )
            for stage in order
        ]
        names = _expand(wanted, [node.name for node in nodes])
        kept = set(names)
        for node in reversed(nodes):
            if node.name in kept:
                kept |= set(node.upstream)
        stages = tuple(node for node in nodes if node.name in kept)
        stale = repo.status(targets=sorted(kept)) if wanted else repo.status()
    changed = {name: tuple(_changes(found)) for name, found in stale.items() if name != code.STAGE}
    return Plan(stages=stages, forced=frozenset(names if force else ()), stale=changed)


def _changes(found: Any) -> Iterator[str]:
    """Of DVC's status of a stage the things that have changed: files, keys of params.yaml, or the command."""
    for entry in found:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for things in entry.values():
                for thing, state in things.items() if isinstance(things, dict) else ():
                    yield from (f"{key} {how}" for key, how in (state if isinstance(state, dict) else {thing: state}).items())


def repro_command(*arguments: str) -> list[str]:
    """The command that runs one stage by DVC, as a child that ends with this process.

    DVC holds the repository's lock only between commands, so stages that run at once wait for each other's (`--wait-for-lock`)
    and each call is held to its own stage (`-s`).
    """
    return tied("dvc", "--wait-for-lock", "repro", "-s", *arguments)


def _see_that_links_reach(repo: Repo) -> None:
    """See that DVC's cache can hold an output as the same file; DVC itself says that it cannot when the stage has run."""
    outputs = Path("artifacts") if Path("artifacts").exists() else Path()
    cache = Path(repo.cache.local.path)
    while not cache.exists():
        cache = cache.parent
    if repo.cache.local.cache_types == ["hardlink"] and cache.stat().st_dev != outputs.stat().st_dev:
        raise ValueError(
            f"{outputs.absolute()} and DVC's cache {repo.cache.local.path} lie on two disks, so that no file can be in both: "
            "`dvc cache dir --local FOLDER` names one on the same disk; by `dvc config --local cache.type copy` all lies twice"
        )


def _expand(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    if not wanted:
        return list(known)
    names = []
    for want in wanted:
        matches = [name for name in known if name == want or name.startswith(f"{want}@")]
        if not matches:
            near = difflib.get_close_matches(want, known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ";"
            raise ValueError(f"there is no stage {want!r}{hint} dvc.yaml has {', '.join(known)}")
        names += matches
    return names


def _needs(stage: str, meta: Any) -> str:
    needs = meta.get("needs", "cpu") if isinstance(meta, dict) else "cpu"
    if needs not in Limits.model_fields:
        raise ValueError(f"dvc.yaml: {stage}: meta.needs: {needs!r}; allowed are {', '.join(Limits.model_fields)}")
    return str(needs)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold DVC's lock, waiting for it: meanwhile no other `dvc` writes dvc.lock."""
    with _repo() as repo, repo.lock:
        yield


@contextlib.contextmanager
def _repo() -> Iterator[Repo]:
    """DVC's view of the checkout. Raises ValueError with DVC's own sentence where it has none."""
    loud = {log: log.level for log in map(logging.getLogger, ("dvc", "dvc_data", "dvc_objects"))}
    try:
        for log in loud:  # their warnings and bars belong to `dvc` on the command line
            log.setLevel(logging.CRITICAL)
        with contextlib.closing(Repo(_wait_for_lock=True)) as repo:
            _see_that_links_reach(repo)
            yield repo
    except LockError as error:
        raise ValueError(f"another `dvc` is at work in this checkout; wait for it to end ({error})") from error
    except SCMError as error:
        raise ValueError(f"{error}, which DVC needs: `git init` makes it; or `dvc config --local core.no_scm true`") from error
    except DvcException as error:  # such as a dvc.lock that a merge has left with marks in it
        raise ValueError(f"dvc: {error}") from error
    finally:
        for log, level in loud.items():
            log.setLevel(level)
