"""Runs a stage as a Slurm job: submits it, follows its log, and brings its output home.

The checkout lies on a disk that the nodes share with this machine; a node needs Python's environment at the same path, and
neither DVC nor Prefect. The job outlives whoever follows it. Its name holds a hash of everything that it computes from, so
the same command finds it again, running or finished, and one that computes from older inputs is cancelled. A stage that the
user stops (SIGINT, SIGTERM) is cancelled; a driver that is lost (SIGHUP, SIGKILL) leaves the job at work.

A finished job keeps its output beside its log as well (hard links): DVC deletes a stage's output before it runs the command
that finds the job finished.
"""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from perceptio_core.params.base import read_yaml
from pipeline.machine import Launch
from stages.common import WORK, StagePaths, fingerprint

_ASK_EVERY_S = 5.0
_READ_EVERY_S = 0.5
_SETTLE_S = 30.0  # a shared disk may show a file on another machine so much later
_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}
_PASSING = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}  # no fault of the stage: it goes on where it stood when run again
_PR_SET_PDEATHSIG = 1
_lost = threading.Event()

_SCRIPT = """#!/bin/sh
cd {checkout} || exit 1
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER PORT
srun --kill-on-bad-exit=1 {command}
code=$?
if [ $code -eq 0 ]; then
    cp -al {out} {kept}.part 2>/dev/null || {{ rm -rf {kept}.part; cp -a {out} {kept}.part; }}
    mv {kept}.part {kept} || code=1
fi
echo $code > {ended}.part && mv {ended}.part {ended}
exit $code
"""


def run_on_slurm(stage: str, arguments: Sequence[str], launch: Launch) -> int:
    """Run a stage as a job, or take up the one that runs or has run it from the same inputs.

    Args:
        stage: its name.
        arguments: of its command: ``--profile P`` and, of a stage with variants, ``--variant V``.
        launch: nodes and options of the job.

    Returns:
        The stage's exit code; EX_TEMPFAIL (75) where the cluster took the job away, so that another try can help.

    Raises:
        ValueError: Slurm's commands are not here, or refuse the job; or another stage than `cotrain` is to run on several
            nodes.
    """
    if launch.nodes > 1 and stage != "cotrain":
        raise ValueError(
            f"machine.yaml: launch.{stage}.nodes: {launch.nodes}; only cotrain runs on several nodes, allowed is 1"
        )
    if shutil.which("sbatch") is None:
        raise ValueError(f"machine.yaml: launch.{stage}.launcher: slurm, but there is no sbatch on the PATH of this machine")
    values = dict(zip(arguments[::2], arguments[1::2], strict=True))
    profile, variant = values["--profile"], values.get("--variant")
    jobs = WORK / profile / "launch" / "-".join([stage, *([variant] if variant else [])])
    out = StagePaths(profile).out(stage, variant)
    job = _Job(folder=jobs / _inputs(stage, profile, variant), out=out)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    _notice_loss_of_parent()
    for older in jobs.iterdir() if jobs.is_dir() else []:
        if older.name != job.folder.name:
            _Job(folder=older, out=out).cancel()
            shutil.rmtree(older)
    try:
        if job.exit_code() == 0 and job.kept.is_dir():
            _say(f"the job {job.name} has finished meanwhile")
        elif identity := job.alive():
            _say(f"the job {identity} ({job.name}) is at work; its log from the beginning:")
        else:
            identity = job.submit(_command(stage, arguments, launch), launch)
            _say(f"submitted the job {identity} ({job.name}); its log: {job.log}")
        code = job.follow()
    except KeyboardInterrupt:
        job.cancel()
        _say(f"cancelled the job {job.name}")
        return 128 + signal.SIGTERM
    if code == 0:
        job.collect()
    return code


class _Job:
    """A job and the folder of its script, log, exit code and output; the folder's name is the hash of its inputs."""

    def __init__(self, *, folder: Path, out: Path) -> None:
        self.folder, self.out = folder, out
        self.name = f"perceptio-{folder.parent.name}-{folder.name}"
        self.log, self.ended, self.kept = folder / "log", folder / "exit", folder / "out"

    def submit(self, command: str, launch: Launch) -> str:
        """Hand the job to Slurm; its number."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        places = {"checkout": Path.cwd(), "out": self.out, "kept": self.kept, "ended": self.ended}
        script = self.folder / "job.sh"
        quoted = {name: shlex.quote(str(path)) for name, path in places.items()}
        script.write_text(_SCRIPT.format(command=command, **quoted), encoding="utf-8")
        options = ["--parsable", f"--job-name={self.name}", f"--output={self.log}", "--open-mode=append"]
        shape = [f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1"]
        # What DVC tells a stage that it starts itself is not for one on another machine.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        answer = _slurm("sbatch", *options, *shape, *launch.options, str(script), environment=environment)
        return answer.split(";")[0].strip()

    def alive(self) -> str | None:
        """The number of the job if it waits or runs."""
        return next(iter(_slurm("squeue", "--noheader", f"--name={self.name}", "--format=%A").split()), None)

    def exit_code(self) -> int | None:
        """The stage's exit code, once the job has ended by itself."""
        try:
            return int(self.ended.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def cancel(self) -> None:
        """Cancel the job if it waits or runs."""
        _slurm("scancel", f"--name={self.name}")

    def follow(self) -> int:
        """Pass the job's log on as it grows until the job has ended; its exit code, or one for how Slurm ended it."""
        asked, gone_since, away, log = 0.0, None, False, None
        while (code := self.exit_code()) is None:
            if _lost.is_set():
                return 128 + signal.SIGHUP
            log = _pass_on(self.log, log)
            now = time.monotonic()
            if now - asked > _ASK_EVERY_S:
                asked = now
                try:
                    state, away = self._state(), False
                except ValueError as error:
                    if not away:
                        _say(f"Slurm does not answer; waiting for it ({error})")
                    away = True
                    continue
                if state in _ALIVE:
                    gone_since = None
                elif gone_since is None:
                    gone_since = now
                elif now - gone_since > _SETTLE_S:
                    _pass_on(self.log, log)
                    _say(f"the job {self.name} ended without the stage's exit code: {state or 'Slurm knows it no more'}")
                    return os.EX_TEMPFAIL if state in _PASSING else 1
            time.sleep(_READ_EVERY_S)
        _pass_on(self.log, log)
        return code

    def collect(self) -> None:
        """See that the output is in its place, and forget the job."""
        if self.out.is_dir():
            shutil.rmtree(self.kept, ignore_errors=True)
        else:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.kept.rename(self.out)
        shutil.rmtree(self.folder)

    def _state(self) -> str:
        """What Slurm says of the job, such as RUNNING; empty if it knows it no more."""
        listed = _slurm("squeue", "--noheader", f"--name={self.name}", "--states=all", "--format=%T").split()
        return next((state for state in listed if state in _ALIVE), listed[-1] if listed else "")


def _command(stage: str, arguments: Sequence[str], launch: Launch) -> str:
    """What `srun` starts on each node: the stage, or one node's share of its processes."""
    if launch.nodes == 1:
        return shlex.join([sys.executable, "-m", f"stages.{stage}", *arguments])
    run = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={launch.nodes}", f"--nproc-per-node={launch.processes}"]
    where = '--node-rank="$SLURM_NODEID" --master-addr="$MASTER" --master-port="$PORT"'
    return shlex.join(["sh", "-c", f"exec {shlex.join(run)} {where} {shlex.join(['-m', f'stages.{stage}', *arguments])}"])


def _inputs(stage: str, profile: str, variant: str | None) -> str:
    """A hash of what the stage computes from: its code and parameters by content, its data by names, sizes and times."""
    described: list[Any] = [stage, variant, Path("profiles", f"{profile}.yaml")]
    for entry in read_yaml(Path("dvc.yaml"))["stages"][stage]["deps"]:
        path = Path(entry.replace("${profile}", profile).replace("${item.variant}", variant or ""))
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            described += [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        elif path.parts[0] == "artifacts":
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


def _slurm(*command: str, environment: dict[str, str] | None = None) -> str:
    """What a command of Slurm prints. Raises ValueError with its complaint if it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ended.returncode != 0:
        raise ValueError(f"{command[0]}: {' '.join(ended.stderr.split()) or f'exit {ended.returncode}'}")
    return ended.stdout


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _notice_loss_of_parent() -> None:
    """Let the kernel send SIGHUP when DVC ends; then following stops, and the job goes on.

    Not at once: a driver that is told to stop tells the stage and ends DVC in the same moment, and then the job is cancelled.
    """
    _lost.clear()
    signal.signal(signal.SIGHUP, lambda *_: _lost.set())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)


def _say(text: str) -> None:
    print(f"launch: {text}", flush=True)
