"""The Prefect flow `perceptio`: one task per stage, built from DVC's own graph, each running ``dvc repro -s`` for its stage.

One server serves the whole flow: the one that PREFECT_API_URL names, or one of its own. Stages that do not read from each other
run at once, as many as the machine's limits allow. Lines of a stage reach the console and Prefect's logs as they come. A
stage that is up to date, or that DVC restores from its cache, ends in the state "Cached". A stage that says that another
try can help (exit code 75, EX_TEMPFAIL of sysexits.h) gets two more; any other failure would only repeat itself. A server
that is lost takes the pages with it and nothing else: the stages run on, and the pages are made up for at the next start.
"""

import atexit
import contextlib
import contextvars
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NoReturn
from uuid import UUID

import httpx
import psutil
from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipeline.dag import Plan, StageNode, repro_command
from pipeline.lineage.publish import Publisher
from pipeline.machine import Limits, Slots
from pipeline.server import serving

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
_STAGE_FAILED = "Stage failed"
_PAUSES_S = (5, 30)
_ASK_EVERY_S = 2
_NO_SERVER = "Failed to reach API"  # what Prefect raises at the start of a run
_AWAY = (PrefectException, httpx.HTTPError)  # what a server that does not answer makes of a call
_children: set[subprocess.Popen[str]] = set()
_gate = threading.RLock()  # held while a child starts and while the run is stopped: no stage begins after a stop
_stopped = threading.Event()


class _StageError(Exception):
    """A stage ended with another code than 0, or was not started; says why in a line."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the tasks of one run share."""

    plan: Plan
    slots: Slots
    publisher: Publisher
    touched: set[str] = field(default_factory=set)
    """The stages that DVC was asked about, so that those after them may differ from what the plan saw."""
    server_lost: threading.Event = field(default_factory=threading.Event)


@dataclass(kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        ended: all stages have, or were not started.
        failures: per failed stage a line with its name and the cause; None when all is well. Stages after a failed one are
            not started.
        server_lost: Prefect's server went away, so that it knows only the beginning.
    """

    ended: bool = False
    failures: str | None = None
    server_lost: bool = False


def reproduce(plan: Plan, *, profile: str, limits: Limits) -> Outcome:
    """Bring the stages of a plan up to date.

    Raises:
        KeyboardInterrupt: the run was stopped, by a signal or by "Cancel" in the UI; all that ran has ended.
        ValueError: the limits do not fit the machine, or PREFECT_API_URL names a server that does not answer.
    """
    slots, outcome = Slots(limits), Outcome()
    runner: Any = ThreadPoolTaskRunner(max_workers=len(plan.stages))
    if get_current_settings().api.url is None:
        server = contextlib.ExitStack()
        atexit.register(server.close)  # Prefect has more to tell it after the run
        # The server that Prefect would bring lives on where this process is killed.
        os.environ["PREFECT_API_URL"], _ = server.enter_context(serving(port=None))
        refresh_global_settings_context()
    try:
        state: State[Any] = _repro_flow.with_options(task_runner=runner)(plan, profile, slots, outcome, return_state=True)
    except _AWAY:
        if not outcome.ended:
            raise
        outcome.server_lost = True  # nobody is there to be told how it ended
        return outcome
    except RuntimeError as error:
        if not str(error).startswith(_NO_SERVER):
            raise
        raise ValueError(f"{error}, which PREFECT_API_URL names; without that variable the run brings its own") from error
    if state.is_cancelled():
        raise KeyboardInterrupt("cancelled")
    if state.name != _STAGE_FAILED:
        state.result()  # raises what went wrong in the flow itself
    return outcome


@flow(name="perceptio", retries=0, validate_parameters=False)
def _repro_flow(plan: Plan, profile: str, slots: Slots, outcome: Outcome) -> State[None]:
    """Submit the stages in order, each waiting for those that it reads from; `outcome` is filled in."""
    futures: dict[str, PrefectFuture[Any]] = {}
    with _ending_children():
        run = _Run(plan=plan, slots=slots, publisher=Publisher(profile))
        for node in plan.stages:
            upstream = [futures[name] for name in node.upstream]
            stage = _run_stage.with_options(name=node.name, task_run_name=node.name)
            futures[node.name] = stage.submit(node=node, run=run, wait_for=upstream, return_state=False)
        states = {name: _final_state(future) for name, future in futures.items()}
        if _stopped.is_set():
            return Cancelled(message="cancelled in the UI")
        outcome.failures = "\n".join(f"{name}: {state.message}" for name, state in states.items() if state.is_failed()) or None
        _publish(run, lambda: run.publisher.run({name: state.name or "" for name, state in states.items()}))
        outcome.server_lost = run.server_lost.is_set()
        outcome.ended = True
    failed = ", ".join(name for name, state in states.items() if state.is_failed())
    return Failed(name=_STAGE_FAILED, message=f"failed: {failed}") if failed else Completed()


@task(cache_policy=NO_CACHE)
def _run_stage(*, node: StageNode, run: _Run) -> State[None]:
    """Run one stage to its end and publish what it made."""
    logger = get_run_logger()
    seconds = None
    if node.name in run.plan.stale | run.plan.forced or run.touched & set(node.upstream):
        run.touched.add(node.name)
        with run.slots.taken(node.needs) as environment:
            start = time.monotonic()
            try:
                cached = _attempts(node.name, force=node.name in run.plan.forced, environment=environment)
            except _StageError as error:
                return Cancelled(message=str(error)) if _stopped.is_set() else Failed(message=str(error))
            if not cached:
                seconds = time.monotonic() - start
    _publish(run, lambda: run.publisher.stage(node.name, downstream=node.downstream, seconds=seconds, logger=logger))
    return Completed(name="Cached") if seconds is None else Completed()


def _publish(run: _Run, page: Callable[[], None]) -> None:
    """Publish a page, unless the server is lost: that is no reason to call failed what has done its work."""
    if run.server_lost.is_set():
        return  # also where it is back: pages link to those before them
    try:
        page()
    except _AWAY as error:
        run.server_lost.set()
        get_run_logger().warning("Prefect's server is lost (%s); the stages run on without it", error)


def _attempts(stage: str, *, force: bool, environment: dict[str, str]) -> bool:
    """Run a stage, and again if it says that this can help; True if DVC found nothing to run.

    Raises:
        _StageError: it failed.
    """
    logger = get_run_logger()
    for pause in (*_PAUSES_S, None):
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        cached = False
        try:
            for line in _output([stage, *(["--force"] if force else [])], environment, tail):
                logger.info(line)
                cached = cached or any(mark in line for mark in _NOTHING_TO_DO)
            return cached
        except _StageError as error:
            if pause is None or _exit_code(tail) != str(os.EX_TEMPFAIL):
                raise _StageError(_cause(list(tail)) or str(error)) from error
            logger.warning("%s could not do its work for now; it is tried again in %d s", stage, pause)
            _stopped.wait(pause)
    raise AssertionError("the last attempt returns or raises")


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


def _output(arguments: list[str], environment: dict[str, str], tail: deque[str]) -> Iterator[str]:
    """The lines that the stage writes, as they come; `tail` keeps the last ones. Raises _StageError if it fails."""
    command = repro_command(*arguments)
    with _gate:
        if _stopped.is_set():
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
        _children.add(child)
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            tail.append(line.rstrip())
            if line.strip() and not line.strip().startswith(_ADVICE):
                yield line.rstrip()
        code = child.wait()
        _children.discard(child)
    if code != 0:
        raise _StageError(f"exit {code}")


def _final_state(future: PrefectFuture[Any]) -> State[Any]:
    future.wait()
    return future.state


@contextlib.contextmanager
def _ending_children() -> Iterator[None]:
    """On SIGINT, SIGTERM or "Cancel" in the UI end the stages that run, at once: the flow itself would first wait for them."""

    def end_all() -> None:
        with _gate:
            _stopped.set()
            for child in list(_children):
                with contextlib.suppress(psutil.NoSuchProcess):
                    for stage in psutil.Process(child.pid).children():
                        stage.terminate()  # first: one that runs on a cluster has a job to cancel
                child.terminate()  # dvc ends, and the kernel ends the stage with it

    def end(number: int, _: FrameType | None) -> NoReturn:
        end_all()
        raise KeyboardInterrupt(signal.Signals(number).name)

    def watch(run_id: UUID) -> None:
        with get_client(sync_client=True) as client:
            while not over.wait(_ASK_EVERY_S):
                with contextlib.suppress(*_AWAY):  # a server that is away for a moment
                    state = client.read_flow_run(run_id).state
                    if state is not None and (state.is_cancelling() or state.is_cancelled()):
                        end_all()
                        return

    _stopped.clear()
    over = threading.Event()
    watcher = threading.Thread(target=contextvars.copy_context().run, args=(watch, UUID(flow_run.id)), daemon=True)
    watcher.start()
    # A worker tells a run that it started why it sends SIGTERM only as long as Prefect's own handler is in place: by that the
    # run ends as Cancelled, or as Crashed.
    by_worker = flow_run.parent_flow_run_id is not None
    handled = (signal.SIGINT,) if by_worker else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    except TerminationSignal:  # what Prefect's handler raises
        end_all()
        raise
    finally:
        over.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
