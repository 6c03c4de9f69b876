"""The Prefect flow `perceptio`: one task per stage of the plan, which shows on Prefect's pages what `pipeline.work` does.

One server serves the whole flow: the one that PREFECT_API_URL names, or one of its own. Lines of a stage reach the console
and Prefect's logs as they come. A stage that is up to date, or that DVC restores from its cache, ends in the state "Cached".
A server that is lost, slow or wrong takes the pages with it and nothing else: the stages run on, and the pages are made up for
at the next start.
"""

import atexit
import contextlib
import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn
from uuid import UUID

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Failed

from pipeline.dag import Plan, StageNode
from pipeline.lineage.publisher import Publisher
from pipeline.machine import Limits
from pipeline.server import serving
from pipeline.terminal import Screen
from pipeline.work import Work, plain_log

_STAGE_FAILED = "Stage failed"
_ASK_EVERY_S = 2
_TELL_WITHIN_S = 0.7
_NO_SERVER = "Failed to reach API"  # what Prefect raises at the start of a run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        failures: per failed stage a line with its name and the cause; None when all is well. Stages after a failed one are
            not started.
        server_lost: what went wrong with Prefect or its server, in a line, so that it knows only a part; None when all is well.
    """

    failures: str | None
    server_lost: str | None


class _Run:
    """What the tasks of one run share."""

    def __init__(self, work: Work, profile: str) -> None:
        self.work, self.profile = work, profile
        self.id: UUID | None = None
        self.states: dict[str, State[Any]] = {}
        self.lost: str | None = None
        """What went wrong with the server. Pages link to those before them: after it there are none, also where it is back."""
        self._publisher: Publisher | None = None
        self._one = threading.Lock()

    def publish(self, page: Callable[[Publisher], None]) -> None:
        """Publish a page; a page that cannot be had is no reason to call failed what has done its work."""
        if self.lost is not None:
            return
        try:
            with self._one:
                self._publisher = self._publisher or Publisher(self.profile)
            page(self._publisher)
        except Exception as error:  # whatever a server that is slow, wrong or gone makes of a call
            self.lose(error)

    def lose(self, error: BaseException) -> None:
        """Go on without the server."""
        if self.lost is None:
            self.lost = " ".join(f"{type(error).__name__}: {error}".split())
            plain_log(self.work.screen).warning("Prefect's server is lost (%s); the stages run on without it", self.lost)


def reproduce(plan: Plan, *, profile: str, limits: Limits, screen: Screen) -> Outcome:
    """Bring the stages of a plan up to date. A signal ends this process (`_signals`).

    Raises:
        KeyboardInterrupt: the run was stopped by "Cancel" in the UI; all that ran has ended.
        ValueError: the limits do not fit the machine, or PREFECT_API_URL names a server that does not answer.
    """
    run = _Run(Work(plan, profile=profile, limits=limits, screen=screen), profile)
    ours = get_current_settings().api.url is None
    if ours:
        server = contextlib.ExitStack()
        atexit.register(server.close)  # Prefect has more to tell it after the run
        # The server that Prefect would bring lives on where this process is killed.
        os.environ["PREFECT_API_URL"], _ = server.enter_context(serving(port=None))
        refresh_global_settings_context()
    with _signals(run):
        try:
            _repro_flow(run, return_state=True)
        except (Exception, Abort) as error:
            if str(error).startswith(_NO_SERVER) and not run.work.ended and not ours:
                raise ValueError(
                    f"{error}, which PREFECT_API_URL names; without that variable the run brings its own"
                ) from error
            run.lose(error)
        run.work.drive(lambda node: _plainly(run.work, node))  # what the flow did not come to
    if run.work.stopped.is_set():
        raise KeyboardInterrupt("cancelled")
    return Outcome(failures=run.work.failures, server_lost=run.lost)


def _plainly(work: Work, node: StageNode) -> None:
    if work.may_run(node):
        work.run(node, plain_log(work.screen))


@flow(name="perceptio", retries=0, validate_parameters=False)
def _repro_flow(run: _Run) -> State[None]:
    """Drive the work, each stage through a task."""
    run.id = UUID(flow_run.id)
    with _signals(run), _watching(run, run.id):  # Prefect has put a handler of its own in the place of ours
        run.work.drive(lambda node: _through_task(run, node))
        if run.work.stopped.is_set():
            return Cancelled(message="cancelled in the UI")
        run.publish(lambda publisher: publisher.run({name: state.name or "" for name, state in run.states.items()}))
    failed = ", ".join(name for name, ended in run.work.ended.items() if ended.failure)
    return Failed(name=_STAGE_FAILED, message=f"failed: {failed}") if failed else Completed()


def _through_task(run: _Run, node: StageNode) -> None:
    """Run a stage as a task, which shows what it waited for; without Prefect where that gets in the way."""
    upstream = [run.states[name] for name in node.upstream if name in run.states]
    stage = _run_stage.with_options(name=node.name, task_run_name=node.name)
    try:
        run.states[node.name] = stage(run, node, wait_for=upstream, return_state=True)
    except (Exception, Abort) as error:
        run.lose(error)
    _plainly(run.work, node)


@task(cache_policy=NO_CACHE)
def _run_stage(run: _Run, node: StageNode) -> State[None]:
    """Run one stage to its end and publish what it made."""
    logger = get_run_logger()
    ended = run.work.run(node, logger)
    if ended.failure is not None:
        return (Cancelled if run.work.stopped.is_set() else Failed)(message=ended.failure)
    run.publish(lambda publisher: publisher.stage(node.name, downstream=node.downstream, seconds=ended.seconds, logger=logger))
    return Completed(name="Cached") if ended.seconds is None else Completed()


@contextlib.contextmanager
def _signals(run: _Run) -> Iterator[None]:
    """SIGINT and SIGTERM end the work, and then this process at once: Prefect would take half a minute to end by itself."""

    def end(*_: object) -> NoReturn:
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        run.work.stop()
        run.work.wait_for_end()
        run.work.screen.__exit__(None, None, None)
        teller = threading.Thread(target=contextvars.copy_context().run, args=(_tell_cancelled, run), daemon=True)
        teller.start()
        teller.join(_TELL_WITHIN_S)
        print("perceptio: stopped; the same command goes on where this one stood", file=sys.stderr, flush=True)
        os._exit(1)  # the kernel ends a server of our own

    # A worker tells a run that it started why it sends SIGTERM only as long as Prefect's own handler is in place: by that the
    # run ends as Cancelled, or as Crashed.
    by_worker = flow_run.parent_flow_run_id is not None or (flow_run.id is not None and run.id is None)
    handled = (signal.SIGINT,) if by_worker else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _tell_cancelled(run: _Run) -> None:
    """Tell the server how the run ended; one that does not take it at once is told nothing."""
    if run.id is not None:
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Cancelled(message="stopped at the terminal"), force=True)


@contextlib.contextmanager
def _watching(run: _Run, identity: UUID) -> Iterator[None]:
    """On "Cancel" in the UI end the stages that run."""

    def watch() -> None:
        while not over.wait(_ASK_EVERY_S):
            with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # a server that is away for a moment
                state = client.read_flow_run(identity).state
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    run.work.stop()
                    return

    over = threading.Event()
    watcher = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
