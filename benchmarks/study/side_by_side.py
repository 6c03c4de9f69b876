"""Trains and scores variants side by side, without DVC: ``python -m benchmarks.study.side_by_side studio:all --at-once 8``.

DVC runs one stage after the other and keeps the books. Small models leave a GPU, or a machine of many cores, nearly idle
that way; this command starts many variants at once, a process with one thread each, which share what there is. It needs
neither DVC nor Prefect. The stages before `cotrain` run once for each profile; one whose parameters, and those of all
stages before it, are equal in a profile named earlier is taken from there.

An output that exists is kept as it is, so that the same command goes on where it stood. Whether it is up to date is a
question for `dvc status`; after a change of code or parameters, remove ``artifacts/<profile>``.
"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from perceptio_core.params import VARIED
from perceptio_core.params.profile import Profile, load_profile
from perceptio_core.params.values import PROFILES
from perceptio_core.tied import tied
from pipeline.settings import ALL
from stages.common import WORK, StagePaths

SHARED = ("sources", "foundations", "teacher_depth", "depth_codebook", "joint_shards")
LOGS = WORK / "side_by_side"
_TAIL_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Target:
    """A profile and the variants of it that are wanted."""

    profile: Profile
    variants: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one stage: `fault` is None where its output is there now."""

    name: str
    seconds: float
    fault: str | None


class Runner:
    """Runs stages as child processes, each with a log of its own, until a deadline.

    Args:
        seconds: from now until whatever still runs is ended; None: no end.
        threads: of each process of a variant.
    """

    def __init__(self, *, seconds: float | None, threads: int) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._threads = threads
        self._gate = threading.Lock()
        self._stopped = False
        self._children: set[subprocess.Popen[bytes]] = set()

    def run(self, stage: str, profile: str, variant: str | None = None) -> Outcome:
        """Run one stage unless its output exists."""
        name = ".".join([profile, stage, *([variant] if variant else [])])
        start = time.monotonic()
        if StagePaths(profile).out(stage, variant).is_dir():
            return Outcome(name=name, seconds=0.0, fault=None)
        options = ["--params", str(PROFILES / f"{profile}.yaml"), *(["--variant", variant] if variant else [])]
        command = tied(f"stages.{stage}", *options)
        environment = os.environ | ({"OMP_NUM_THREADS": str(self._threads)} if variant else {})
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{name}.log"
        with log.open("wb") as stream:
            with self._gate:
                if self._stopped or self._left() == 0:
                    return Outcome(name=name, seconds=0.0, fault="not started: no time was left")
                child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
                self._children.add(child)
            try:
                code: int | str = child.wait(self._left())
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                code = "ended: no time was left"
            finally:
                self._children.discard(child)
        fault = None
        if code != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
            fault = "\n".join([*lines, f"{code}" if isinstance(code, str) else f"exit {code}"])
        return Outcome(name=name, seconds=time.monotonic() - start, fault=fault)

    def stop(self) -> None:
        """End what runs, and start nothing more."""
        with self._gate:
            self._stopped = True
            for child in list(self._children):
                child.terminate()

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())


def main() -> None:
    """Run what is asked for; exits with 1 if anything failed or was not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="PROFILE:VARIANT,...", help="such as studio:full,control; studio:all")
    parser.add_argument("--at-once", type=int, default=1, help="variants that run at the same time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each variant's process (default: 1)")
    parser.add_argument("--seconds", type=float, help="end what still runs after this time; what is finished stays")
    arguments = parser.parse_args()
    try:
        targets = [parse_target(text) for text in arguments.targets]
        names = [target.profile.name for target in targets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"profile {repeated[0]} is named twice; list its variants in one place, with commas")
        if arguments.at_once < 1 or arguments.threads < 1:
            raise ValueError("--at-once and --threads: allowed is 1 or more")
    except ValueError as error:
        print(f"side_by_side: {error}", file=sys.stderr)
        sys.exit(2)
    runner = Runner(seconds=arguments.seconds, threads=arguments.threads)
    try:
        failures = run(targets, runner=runner, at_once=arguments.at_once)
    finally:
        runner.stop()
    if failures:
        sys.exit("\n\n".join(f"{failure.name}:\n{failure.fault}" for failure in failures))


def parse_target(text: str) -> Target:
    """``studio:full,control`` as a target; ``studio:all`` for all variants of the profile.

    Raises:
        ValueError: no such profile or variant; says what is allowed.
    """
    name, _, listed = text.partition(":")
    profile = load_profile(name)
    variants = tuple(profile.variants) if listed == ALL else tuple(listed.split(","))
    for variant in variants:
        profile.variant(variant)
    return Target(profile=profile, variants=variants)


def run(targets: Sequence[Target], *, runner: Runner, at_once: int) -> list[Outcome]:
    """Run each target's shared stages, and its variants side by side as soon as these are done.

    Returns:
        What failed or was not finished. A profile whose shared stages fail has no variants run; the others go on.
    """
    made = {(target.profile.name, stage): Future[bool]() for target in targets for stage in SHARED}

    def shared(target: Target) -> Outcome | None:
        """The stage that failed, if one did; tells those who wait for a stage whether it is there."""
        name, fault = target.profile.name, None
        try:
            for stage in SHARED:
                lender = _lender(target.profile, stage, targets)
                if lender is None:
                    outcome = _told(runner.run(stage, name))
                    fault = outcome if outcome.fault else None
                elif made[lender, stage].result():
                    _borrow(StagePaths(lender).out(stage), StagePaths(name).out(stage))
                else:
                    fault = Outcome(
                        name=f"{name}.{stage}", seconds=0.0, fault=f"there is none in profile {lender} to take over"
                    )
                if fault is not None:
                    return fault
                made[name, stage].set_result(True)
        finally:
            for stage in SHARED:
                if not made[name, stage].done():
                    made[name, stage].set_result(False)
        return None

    failures: list[Outcome] = []
    with ThreadPoolExecutor(at_once) as variants, ThreadPoolExecutor(len(targets)) as preparing:
        running: list[Future[list[Outcome]]] = []
        prepared = {preparing.submit(shared, target): target for target in targets}
        for done in as_completed(prepared):
            if fault := done.result():
                failures.append(fault)
                continue
            name = prepared[done].profile.name
            running += [variants.submit(_variant, name, variant, runner=runner) for variant in prepared[done].variants]
        for job in running:
            failures += [outcome for outcome in job.result() if outcome.fault]
    return failures


def _variant(profile: str, variant: str, *, runner: Runner) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for stage in VARIED:
        outcomes.append(_told(runner.run(stage, profile, variant)))
        if outcomes[-1].fault:
            break
    return outcomes


def _told(outcome: Outcome) -> Outcome:
    how = "failed" if outcome.fault else "done" if outcome.seconds else "kept"
    print(f"{outcome.name}: {how} after {outcome.seconds:.1f} s", flush=True)
    return outcome


def _lender(profile: Profile, stage: str, targets: Sequence[Target]) -> str | None:
    """The profile named earlier that makes the same output of a shared stage; None where `profile` makes its own."""
    known = SHARED[: SHARED.index(stage) + 1]
    for earlier in targets:
        if earlier.profile.name == profile.name:
            return None
        if all(getattr(earlier.profile, section) == getattr(profile, section) for section in known):
            return earlier.profile.name
    return None


def _borrow(source: Path, target: Path) -> None:
    """The folder `source` at `target` too, without copying a byte; outputs are never written to, only replaced."""
    if target.is_dir():
        return
    unfinished = target.with_name(f".incoming-{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, copy_function=os.link)
    unfinished.rename(target)


if __name__ == "__main__":
    main()
