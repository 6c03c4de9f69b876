"""Runs a stage as a job of a cluster: submits it, follows its log, and brings its output home.

`Cluster` is what clusters differ in.
The checkout lies on a disk that the nodes share with this machine; a node needs Python's environment, and neither DVC nor
Prefect. The job outlives whoever follows it. Its name holds a hash of everything that it computes from, so the same command
finds it again, running or finished, and one that computes from older inputs is cancelled. A stage that the user stops
(SIGINT, SIGTERM) is cancelled; a driver that is lost (SIGHUP, SIGKILL) leaves the job at work.

A finished job keeps its output beside its log as well (hard links): DVC deletes a stage's output before it runs the command
that finds the job finished.

Several nodes are of two kinds. Those of `cotrain` train one model together (`torchrun`). Those of the wide stages are a Ray
that the job starts for itself: the first runs the stage, and others come and go (`pipeline.launch.ray_node`).
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn, Protocol

from perceptio_core.params.base import read_yaml
from perceptio_core.params.values import PARAMS, Values, read_values
from perceptio_core.tied import tie
from pipeline.code import FOLDER
from pipeline.machine import Launch
from stages.common import WORK, StagePaths, fingerprint

TOGETHER, WIDE = ("cotrain",), ("sources", "teacher_depth", "joint_shards", "evaluate")
"""Stages whose nodes need one another, and stages whose units of work an engine takes to whatever nodes there are."""

RESTARTS = 3
"""How often the processes of nodes that train together are started again when one of them dies."""

_LATE_S = 600  # nodes may come so much later than the first
_ASK_EVERY_S = 5.0
_READ_EVERY_S = 0.5
_SETTLE_S = 30.0  # a shared disk may show a file on another machine so much later
_lost = threading.Event()


class Cluster(Protocol):
    """What takes jobs. Each method raises ValueError with the cluster's complaint where it does not do as it is told."""

    def submit(self, job: Job, stage: Sequence[str], launch: Launch) -> str:
        """Hand over a job that runs a stage's command (module and arguments, without Python); what to call it to the user."""

    def alive(self, job: Job) -> str | None:
        """What to call the job to the user if it waits or runs."""

    def cancel(self, job: Job) -> None:
        """End the job if it waits or runs, and forget it."""

    def state(self, job: Job) -> State:
        """How the cluster sees the job."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Of a job.

    Attributes:
        told: the cluster's own word; empty if it knows the job no more.
        alive: it waits or runs.
        passing: dead through no fault of its own, so that another try can help.
    """

    told: str
    alive: bool
    passing: bool


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job and the folder of its files; the folder's name is the hash of its inputs, `out` the stage's output folder."""

    folder: Path
    out: Path

    @property
    def name(self) -> str:
        """The job's name on the cluster."""
        return f"perceptio-{self.folder.parent.name}-{self.folder.name}"

    @property
    def log(self) -> Path:
        """What the stage writes."""
        return self.folder / "log"

    @property
    def params(self) -> Path:
        """The parameters that it was submitted with."""
        return self.folder / "params.yaml"

    @property
    def ended(self) -> Path:
        """The stage's exit code, once it has ended by itself."""
        return self.folder / "exit"

    @property
    def token(self) -> Path:
        """What the nodes of a Ray know each other by."""
        return self.folder / "token"

    @property
    def kept(self) -> Path:
        """The output, kept until it is home."""
        return self.folder / "out"

    def exit_code(self) -> int | None:
        """The stage's exit code, once it has ended by itself."""
        return int(self.ended.read_text(encoding="utf-8")) if self.ended.is_file() else None

    def fresh_folder(self) -> None:
        """Forget an earlier attempt."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def collect(self) -> None:
        """See that the output is in its place, and forget the job."""
        if self.out.is_dir():
            shutil.rmtree(self.kept, ignore_errors=True)
        else:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.kept.rename(self.out)
        shutil.rmtree(self.folder)

    def keeping(self) -> str:
        """Lines of a shell script that, after the stage, keep its output and write down its exit code, which is in $code."""
        kept, out, ended = (shlex.quote(str(path)) for path in (self.kept, self.out, self.ended))
        return f"""if [ $code -eq 0 ] && [ ! -d {kept} ]; then
    cp -al {out} {kept}.part 2>/dev/null || {{ rm -rf {kept}.part; cp -a {out} {kept}.part; }}
    mv -T {kept}.part {kept} || code=1
fi
echo $code > {ended}.part && mv {ended}.part {ended}
"""


def run_as_job(cluster: Cluster, stage: str, arguments: Sequence[str], launch: Launch) -> int:
    """Run a stage as a job, or take up the one that runs or has run it from the same inputs.

    Args:
        cluster: what takes the job.
        stage: its name.
        arguments: of its command: of a stage with variants, ``--variant V``.
        launch: nodes and options of the job.

    Returns:
        The stage's exit code; EX_TEMPFAIL (75) where the cluster took the job away, so that another try can help.

    Raises:
        ValueError: the cluster refuses the job.
    """
    values = read_values()
    profile, variant = values.profile, dict(zip(arguments[::2], arguments[1::2], strict=True)).get("--variant")
    jobs = WORK / profile / "launch" / "-".join([stage, *([variant] if variant else [])])
    out = StagePaths(profile).out(stage, variant)
    job = Job(folder=jobs / _inputs(stage, values, variant), out=out)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    _notice_loss_of_parent()
    for older in jobs.iterdir() if jobs.is_dir() else []:
        if older.name != job.folder.name:
            cluster.cancel(Job(folder=older, out=out))
            shutil.rmtree(older)
    try:
        if job.exit_code() == 0 and job.kept.is_dir():
            _say(f"the job {job.name} has finished meanwhile")
        elif identity := cluster.alive(job):
            _say(f"the job {identity} ({job.name}) is at work; its log from the beginning:")
        else:
            job.fresh_folder()
            # The job may wait for days; params.yaml may then hold another run's.
            shutil.copy(PARAMS, job.params)
            identity = cluster.submit(job, [f"stages.{stage}", "--params", str(job.params), *arguments], launch)
            _say(f"submitted the job {identity} ({job.name}); its log: {job.log}")
        code = _follow(job, cluster)
    except KeyboardInterrupt:
        cluster.cancel(job)
        _say(f"cancelled the job {job.name}")
        return 128 + signal.SIGTERM
    if code == 0:
        job.collect()
    return code


def python_command(job: Job, stage: Sequence[str], launch: Launch, *, python: str, rank: str, endpoint: str, cores: str) -> str:
    """The shell command of one node: the stage, or this node's share of its work.

    Where nodes train together, a process that dies is started again, and all others with it, at most `RESTARTS` times; they go
    on from the last checkpoint. The first node keeps the meeting point (c10d). Where they are a Ray, the first runs the stage.

    Args:
        job: whose node it is.
        stage: module and arguments.
        launch: how many nodes, and processes on each.
        python: the interpreter.
        rank: the shell variable with this node's number, without a dollar sign.
        endpoint: what the shell expands to the first node's address and a free port there, ``address:port``.
        cores: what the shell expands to the number of workers that this node can have.
    """
    if launch.nodes == 1:
        return shlex.join([python, "-m", *stage])
    if not together(stage):
        node = shlex.join([python, "-m", "pipeline.launch.ray_node"])
        return f'{node} "${rank}" "{endpoint}" {shlex.quote(str(job.token))} "{cores}" {shlex.join(stage)}'
    # The switch: else a restarted process may call at the address of a dead one.
    run = ["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", python, "-m", "torch.distributed.run"]
    run += [f"--nnodes={launch.nodes}", f"--nproc-per-node={launch.processes}", f"--max-restarts={RESTARTS}"]
    run += ["--rdzv-backend=c10d", f"--rdzv-id={job.name}"]
    where = f'--rdzv-endpoint="{endpoint}" --rdzv-conf="is_host=$(({rank} == 0)),read_timeout={_LATE_S}"'
    return f"{shlex.join(run)} {where} {shlex.join(['-m', *stage])}"


def together(stage: Sequence[str]) -> bool:
    """Whether the nodes that run a stage (module and arguments) need one another."""
    return stage[0].removeprefix("stages.") in TOGETHER


def _follow(job: Job, cluster: Cluster) -> int:
    """Pass the job's log on as it grows until the job has ended; its exit code, or one for how the cluster ended it.

    A stage that has failed has not ended while the cluster still has the job: it may be back in the queue, having been killed
    with its node or to make room for another.
    """
    asked, gone_since, away, failed = -_ASK_EVERY_S, None, False, False
    log: IO[bytes] | None = None
    while (code := job.exit_code()) != 0:
        if _lost.is_set():
            return 128 + signal.SIGHUP
        log = _pass_on(job.log, log)
        now = time.monotonic()
        if now - asked > _ASK_EVERY_S or failed != (code is not None):
            asked, failed = now, code is not None
            try:
                state, away = cluster.state(job), False
            except ValueError as error:
                if not away:
                    _say(f"the cluster does not answer; waiting for it ({error})")
                away = True
                continue
            if state.alive:
                gone_since = None
            elif code is not None:
                code = os.EX_TEMPFAIL if state.passing else code
                break
            elif gone_since is None:
                gone_since = now
            elif now - gone_since > _SETTLE_S:
                _pass_on(job.log, log)
                _say(f"the job {job.name} ended without the stage's exit code: {state.told or 'the cluster knows it no more'}")
                return os.EX_TEMPFAIL if state.passing else 1
        time.sleep(_READ_EVERY_S)
    _pass_on(job.log, log)
    return code


def told_by(*command: str, given: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a command of the cluster prints. Raises ValueError with its complaint if it fails."""
    ended = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode != 0:
        raise ValueError(f"{command[0]}: {' '.join(ended.stderr.split()) or f'exit {ended.returncode}'}")
    return ended.stdout


def _inputs(stage: str, values: Values, variant: str | None) -> str:
    """A hash of what the stage computes from: its code and parameters by content, its data by names, sizes and times."""
    definition = read_yaml(Path("dvc.yaml"))["stages"][stage]
    sections = {str(key).partition(".")[0] for key in definition["params"]}
    described: list[Any] = [stage, variant, {section: values.plain[section] for section in sorted(sections)}]
    for entry in definition["deps"]:
        path = Path(entry.replace("${profile}", values.profile).replace("${item.variant}", variant or ""))
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            described += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        elif path.parts[0] == "artifacts" and not path.is_relative_to(FOLDER):
            described.append([str(path), path.stat().st_size, path.stat().st_mtime_ns])
        else:
            described.append(path)
    return fingerprint(*described)


def _pass_on(path: Path, stream: IO[bytes] | None) -> IO[bytes] | None:
    """Write what a file has gained to our own output; the stream to go on with."""
    if stream is None:
        if not path.is_file():
            return None
        stream = path.open("rb")
    sys.stdout.buffer.write(stream.read())
    sys.stdout.buffer.flush()
    return stream


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _notice_loss_of_parent() -> None:
    """Let the kernel send SIGHUP when DVC ends; then following stops, and the job goes on.

    Not at once: a driver that is told to stop tells the stage and ends DVC in the same moment, and then the job is cancelled.
    """
    _lost.clear()
    signal.signal(signal.SIGHUP, lambda *_: _lost.set())
    tie(os.getppid(), signal.SIGHUP)


def _say(text: str) -> None:
    print(f"launch: {text}", flush=True)
