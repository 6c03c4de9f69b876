"""The Prefect flow `perceptio`: one task per stage, built from DVC's own graph, each running ``dvc repro -s`` for its stage.

One embedded server serves the whole flow (or the one that PREFECT_API_URL names). Lines of a stage reach the console and
Prefect's logs as they come. A stage that DVC finds unchanged, or restores from its cache, ends in the state "Cached".
"""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipeline.dag import StageNode, locked_outputs, stages_in_order
from pipeline.results import stage_markdown

_TAIL_LINES = 20
# What DVC advises after every stage, seven times a run.
_ADVICE = (
    "To track the changes with git",
    "git add dvc.lock",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
_NOTHING_TO_DO = ("didn't change, skipping", "is cached - skipping run")
_children: set[subprocess.Popen[str]] = set()
_gate = threading.RLock()  # held while a child starts and while the run is stopped: no stage begins after a stop
_stopped = threading.Event()


class _StageError(Exception):
    """A stage ended with another code than 0, or was not started."""


def reproduce() -> list[str]:
    """Bring every stage up to date.

    Returns:
        Per failed stage, its name and its last lines; empty when all is well. Stages after a failed one are not started.
    """
    state = _repro_flow(return_state=True)
    failures: list[str] | Exception = state.result(raise_on_failure=False)
    if isinstance(failures, Exception):
        raise failures
    return failures


@flow(name="perceptio", task_runner=ThreadPoolTaskRunner(max_workers=1), retries=0)  # type: ignore[arg-type]
def _repro_flow() -> list[str]:
    """Submit the stages in order, each waiting for those that it reads from."""
    futures: dict[str, PrefectFuture[Any]] = {}
    with _ending_children():
        for node in stages_in_order():
            upstream = [futures[name] for name in node.upstream]
            run = _run_stage.with_options(name=node.name, task_run_name=node.name)
            futures[node.name] = run.submit(node=node, wait_for=upstream, return_state=False)
        states = {name: _final_state(future) for name, future in futures.items()}
    return [f"{name}:\n{state.message}" for name, state in states.items() if state.is_failed()]


@task
def _run_stage(node: StageNode) -> State[None]:
    """Run one stage to its end and publish what it made."""
    logger = get_run_logger()
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    start, cached = time.monotonic(), False
    try:
        for line in _output(node.name, tail):
            logger.info(line)
            cached = cached or any(mark in line for mark in _NOTHING_TO_DO)
    except _StageError as error:
        return Failed(message="\n".join([*tail, str(error)]))
    seconds = time.monotonic() - start
    markdown = stage_markdown(stage=node.name, outputs=locked_outputs(node.name), seconds=seconds, cached=cached)
    create_markdown_artifact(key=f"stage-{node.slug}", markdown=markdown, description=f"What {node.name} made")
    return Completed(name="Cached") if cached else Completed()


def _output(stage: str, tail: deque[str]) -> Iterator[str]:
    """The lines that the stage writes, as they come; `tail` keeps the last ones. Raises _StageError if it fails."""
    command = [sys.executable, "-m", "pipeline.child", stage]
    with _gate:
        if _stopped.is_set():
            raise _StageError("not started: the run was stopped before")
        # The driver's process group is kept: Ctrl-C in a terminal reaches the stage as well.
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
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
    """On SIGINT or SIGTERM end the stage that runs, at once: the flow itself would first wait for it."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        with _gate:
            _stopped.set()
            for child in list(_children):
                child.terminate()  # dvc ends, and the kernel ends the stage with it
        raise KeyboardInterrupt(signal.Signals(number).name)

    _stopped.clear()
    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
