"""The stages of a run at work, each by ``dvc repro -s`` of its own, and how each of them ended.

What happened to the stages is known here alone: whoever shows it (Prefect, a terminal) may be slow, wrong or gone. Stages that
do not read from each other run at once, as many as the machine's limits allow. A stage that says that another try can help
(exit code 75, EX_TEMPFAIL of sysexits.h) gets two more; any other failure would only repeat itself.
"""

import contextlib
import contextvars
import logging
import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import psutil

from pipeline.dag import Plan, StageNode, repro_command
from pipeline.machine import Limits, Slots
from pipeline.terminal import Screen
from stages.common import WORK

_TAIL_LINES = 200
# What DVC advises after every stage, seven times a run.
_ADVICE = (
    "To track the changes with git",
    "git add dvc.lock",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
_NOTHING_TO_DO = ("didn't change, skipping", "is cached - skipping run")
_REPORT = re.compile(r"ERROR: failed to reproduce|[EW]\d{4} \S+ \d+ torch/distributed/elastic")
_EXITED = re.compile(r"^ERROR: failed to reproduce .* exited with (-?\d+)")  # DVC's own exit code is 255 for every failure
_PAUSES_S = (5, 30)
_ENDS_WITHIN_S = 1.5
_CANCELS_WITHIN_S = 60.0
_FOLLOWER = "pipeline.launch"  # the module that follows a job of a cluster, and cancels it

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a stage ended.

    Attributes:
        seconds: how long it ran; None where DVC found nothing to run.
        failure: why it failed, in a line; None where it did not.
    """

    seconds: float | None = None
    failure: str | None = None


class Work:
    """The stages of a plan.

    Attributes:
        ended: those that have, in the order in which they did. Stages after a failed one are not started, and never here.
        stopped: the run was told to end, so that none begins any more.
    """

    def __init__(self, plan: Plan, *, profile: str, limits: Limits, screen: Screen) -> None:
        """Raises ValueError if the limits do not fit the machine."""
        self.plan = plan
        self.screen = screen
        self._logs = WORK / profile / "logs"
        self.ended: dict[str, Ended] = {}
        self.stopped = threading.Event()
        self._slots = Slots(limits)
        self._touched: set[str] = set()  # DVC was asked about them, so that those after them may differ from what the plan saw
        self._children: set[subprocess.Popen[str]] = set()
        self._gate = threading.RLock()  # held while a child starts and while the run is stopped: no stage begins after a stop

    @property
    def failures(self) -> str | None:
        """Per failed stage a line with its name and the cause; None when all is well."""
        return "\n".join(f"{name}: {ended.failure}" for name, ended in self.ended.items() if ended.failure) or None

    def drive(self, each: Callable[[StageNode], None]) -> None:
        """Call `each` with every stage that has not ended, in a thread of its own, once all that it reads from is through.

        Args:
            each: is to `run` the stage, unless it lacks what it reads from (`may_run`).
        """

        def in_turn(node: StageNode, upstream: Sequence[Future[None]]) -> None:
            wait(upstream)
            if node.name not in self.ended and not self.stopped.is_set():
                each(node)

        futures: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(max_workers=len(self.plan.stages)) as pool:
            try:
                for node in self.plan.stages:
                    upstream = [futures[name] for name in node.upstream]
                    futures[node.name] = pool.submit(contextvars.copy_context().run, in_turn, node, upstream)
                wait(futures.values())
            except BaseException:  # such as a signal's: the pool would first wait for the stages
                self.stop()
                raise
        for future in futures.values():
            future.result()

    def may_run(self, node: StageNode) -> bool:
        """Whether all that a stage reads from is there, and the run goes on."""
        well = all(name in self.ended and self.ended[name].failure is None for name in node.upstream)
        return well and not self.stopped.is_set()

    def run(self, node: StageNode, logger: Logger) -> Ended:
        """Run a stage to its end, or say how it ended before; its lines go to `logger` as they come."""
        if node.name not in self.ended:
            self.ended[node.name] = self._run(node, logger)
        return self.ended[node.name]

    def _run(self, node: StageNode, logger: Logger) -> Ended:
        if node.name not in self.plan.asked and not self._touched & set(node.upstream):
            return Ended()
        self._touched.add(node.name)
        with self._slots.taken(node.needs) as environment:
            start = time.monotonic()
            self.screen.begins(node.name)
            try:
                cached = self._attempts(node.name, environment=environment, logger=logger)
                ended = Ended(seconds=None if cached else time.monotonic() - start)
            except _StageError as error:
                ended = Ended(failure=str(error))
            if not self.stopped.is_set():
                self.screen.ends(node.name, seconds=ended.seconds, failure=ended.failure)
            return ended

    def _attempts(self, stage: str, *, environment: dict[str, str], logger: Logger) -> bool:
        """Run a stage, and again if it says that this can help; True if DVC found nothing to run.

        Not by Prefect's retries, which are its tasks': stages run the same where no server answers.

        Raises:
            _StageError: it failed.
        """
        arguments = [stage, *(["--force"] if stage in self.plan.forced else [])]
        for pause in (*_PAUSES_S, None):
            tail: deque[str] = deque(maxlen=_TAIL_LINES)
            cached = False
            try:
                for line in self._output(stage, arguments, environment, tail):
                    logger.info(line)
                    self.screen.says(stage, line)
                    cached = cached or any(mark in line for mark in _NOTHING_TO_DO)
                return cached
            except _StageError as error:
                if pause is None or _exit_code(tail) != str(os.EX_TEMPFAIL):
                    raise _StageError(_cause(list(tail)) or str(error)) from error
                logger.warning("%s could not do its work for now; it is tried again in %d s", stage, pause)
                self.stopped.wait(pause)
        raise AssertionError("the last attempt returns or raises")

    def _output(self, stage: str, arguments: list[str], environment: dict[str, str], tail: deque[str]) -> Iterator[str]:
        """The lines that the stage writes, as they come, also to its log; `tail` keeps the last ones.

        Raises:
            _StageError: it fails.
        """
        command = repro_command(*arguments)
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._gate:
            if self.stopped.is_set():
                raise _StageError("not started: the run was stopped before")
            # The driver's process group is kept: Ctrl-C in a terminal reaches the stage as well.
            child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=os.environ | environment,
            )
            self._children.add(child)
        with child, (self._logs / f"{stage}.log").open("w", encoding="utf-8") as log:
            assert child.stdout is not None
            for line in child.stdout:
                log.write(line)
                log.flush()
                tail.append(line.rstrip())
                if line.strip() and not line.strip().startswith(_ADVICE) and not self.stopped.is_set():
                    yield line.rstrip()
            code = child.wait()
            self._children.discard(child)
        if code != 0:
            raise _StageError(f"exit {code}")

    def stop(self) -> None:
        """End the stages that run, at once, and let none begin."""
        with self._gate:
            self.stopped.set()
            for child in list(self._children):
                with contextlib.suppress(psutil.NoSuchProcess):
                    for stage in psutil.Process(child.pid).children():
                        stage.terminate()  # first: one that runs on a cluster has a job to cancel
                child.terminate()  # dvc ends, and the kernel ends the stage with it

    def wait_for_end(self) -> None:
        """After `stop`: wait until what was started has ended; what takes longer, and has no job to cancel, is killed."""
        begun = time.monotonic()
        while self._children and time.monotonic() - begun < _CANCELS_WITHIN_S:
            time.sleep(0.02)
            if time.monotonic() - begun > _ENDS_WITHIN_S:
                for process in self._descendants():
                    with contextlib.suppress(psutil.Error):
                        if _FOLLOWER not in process.cmdline():
                            process.kill()

    def _descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [one for child in list(self._children) for one in psutil.Process(child.pid).children(recursive=True)]
        return []


def run_alone(plan: Plan, *, profile: str, screen: Screen) -> str | None:
    """Run the stages of a plan one by one, without Prefect; per failed stage a line, or None.

    Raises:
        KeyboardInterrupt: the run was stopped; all that ran has ended.
    """
    work = Work(plan, profile=profile, limits=Limits(), screen=screen)
    log = plain_log(screen)

    def one(node: StageNode) -> None:
        if not work.failures:
            work.run(node, log)

    try:
        work.drive(one)
    except KeyboardInterrupt:
        work.wait_for_end()
        raise
    return work.failures


def plain_log(screen: Screen) -> logging.Logger:
    """Where lines go that no log of Prefect's takes: to stderr as they are, unless a screen shows them."""
    log = logging.getLogger("perceptio")
    if not log.handlers:
        log.addHandler(logging.NullHandler() if screen.quiet else logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


class _StageError(Exception):
    """A stage ended with another code than 0, or was not started; says why in a line."""


def _exit_code(lines: Iterable[str]) -> str | None:
    """The exit code of a stage's own command, by DVC's report of it."""
    return next((found[1] for line in lines if (found := _EXITED.search(line))), None)


def _cause(lines: Sequence[str]) -> str | None:
    """Of a failed stage's last lines the one that says most: its own last, before what torchrun and DVC report of its end.

    Where DVC itself failed, after a stage that did its work, that is DVC's.
    """
    reports = [number for number, line in enumerate(lines) if _REPORT.match(line)]
    own = [line.strip() for line in lines[: reports[0] if reports else None] if line.strip()]
    said = own[-1] if own and not own[-1].startswith("> ") else None  # that line is DVC's: the command
    code = _exit_code(lines)
    if code is None and reports and lines[reports[0]].startswith("ERROR: "):
        return lines[reports[0]].removeprefix("ERROR: ").strip()
    return said if code is None else f"{said or 'it said nothing'} (exit code {code})"
