"""Programs that take turns."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import PACKAGES, python_of
from benchmarks.peers.found import Found

_SCRIPTS = Path(__file__).parent / "scripts"
Printed = dict[str, Any]
"""What a program prints last: a JSON object, `seconds` among it, and `read`, which is the same for all of a comparison."""


@dataclass(frozen=True)
class Program:
    """A program of a peer.

    Attributes:
        peer: whose environment it runs in.
        script: file name in `scripts`.
        arguments: of it.
        before: called before each run; what it does is not timed.
    """

    peer: str
    script: str
    arguments: tuple[str, ...]
    before: Callable[[], None] = lambda: None

    def run(self) -> Printed:
        """What it printed.

        Raises:
            RuntimeError: it failed; says how.
        """
        self.before()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        command = [python_of(self.peer), _SCRIPTS / self.script, *self.arguments]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if ended.returncode:
            raise RuntimeError(f"{self.script} {' '.join(self.arguments)} failed:\n{ended.stderr[-2000:]}")
        printed: Printed = json.loads(ended.stdout.splitlines()[-1])
        return printed

    @property
    def name(self) -> str:
        """The peer and its version."""
        return f"{self.peer} {(PACKAGES[self.peer] or '').partition('==')[2] or version(self.peer)}"


@dataclass(frozen=True)
class Figure:
    """A figure of a comparison; more is better.

    Attributes:
        what: was done.
        unit: of the figure.
        of: what a program printed -> the figure.
    """

    what: str
    unit: str
    of: Callable[[Printed], float]


def compare(figures: Sequence[Figure], *, ours: Program, peers: Sequence[Program], repeats: int) -> Iterator[Found]:
    """Run each in turn, `repeats` times; the medians of each figure.

    Raises:
        RuntimeError: one failed, or did not read what the others did.
    """
    commit = _commit()  # before this writes into the checkout
    printed: dict[str, list[Printed]] = {program.peer: [] for program in (ours, *peers)}
    for turn in range(repeats):
        for program in (ours, *peers):
            printed[program.peer].append(program.run())
            values = ", ".join(f"{figure.of(printed[program.peer][-1]):.4g} {figure.unit}" for figure in figures)
            print(f"{figures[0].what}: run {turn + 1} of {repeats}, {program.peer}: {values}", flush=True)
    results = {peer: runs[-1].get("read") for peer, runs in printed.items()}
    if any(result != results[ours.peer] for result in results.values()):
        raise RuntimeError(f"{figures[0].what}: not everyone read the same: {results}")
    for figure in figures:
        values_of = {peer: [figure.of(run) for run in runs] for peer, runs in printed.items()}
        for program in peers:
            ratios = [our / their for our, their in zip(values_of[ours.peer], values_of[program.peer], strict=True)]
            mine, theirs = (statistics.median(values_of[one.peer]) for one in (ours, program))
            yield Found(
                what=figure.what,
                unit=figure.unit,
                ours=mine,
                peer=program.name,
                theirs=theirs,
                ratio=mine / theirs,
                spread=(min(ratios), max(ratios)),
                machine=f"{os.cpu_count()} cores, {platform.machine()}",
                commit=commit,
            )


@cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
