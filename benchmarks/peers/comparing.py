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

    def run(self) -> dict[str, Any]:
        """What it printed: a JSON object with `seconds`, last.

        Raises:
            RuntimeError: it failed; says how.
        """
        self.before()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        command = [python_of(self.peer), _SCRIPTS / self.script, *self.arguments]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if ended.returncode:
            raise RuntimeError(f"{self.script} {' '.join(self.arguments)} failed:\n{ended.stderr[-2000:]}")
        printed: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return printed

    @property
    def name(self) -> str:
        """The peer and its version."""
        return f"{self.peer} {(PACKAGES[self.peer] or '').partition('==')[2] or version(self.peer)}"


def compare(what: str, *, unit: str, ours: Program, peers: Sequence[Program], count: int, repeats: int) -> Iterator[Found]:
    """Run each in turn, `repeats` times; how many of `count` a second each did, by the median.

    Raises:
        RuntimeError: one failed, or did not read what the others did.
    """
    commit = _commit()  # before this writes into the checkout
    rates: dict[str, list[float]] = {program.peer: [] for program in (ours, *peers)}
    results: dict[str, Any] = {}
    for turn in range(repeats):
        for program in (ours, *peers):
            printed = program.run()
            rates[program.peer].append(count / printed["seconds"])
            results[program.peer] = printed.get("read")
            print(f"{what}: run {turn + 1} of {repeats}, {program.peer}: {rates[program.peer][-1]:.4g} {unit}", flush=True)
    if any(result != results[ours.peer] for result in results.values()):
        raise RuntimeError(f"{what}: not everyone read the same: {results}")
    for program in peers:
        ratios = [our / their for our, their in zip(rates[ours.peer], rates[program.peer], strict=True)]
        mine, theirs = (statistics.median(rates[one.peer]) for one in (ours, program))
        yield Found(
            what=what,
            unit=unit,
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
