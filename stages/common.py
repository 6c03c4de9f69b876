"""What every stage command shares: its arguments, its folders, and how it publishes its output in one step.

A stage works in ``.work/`` and renames the finished folder into ``artifacts/``: DVC deletes a stage's outputs before it
runs it, so work in progress lives where a killed stage finds it again.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from perceptio_core.files import naming
from perceptio_core.params.values import PARAMS

ARTIFACTS = Path("artifacts")
WORK = Path(".work")
_OURS = [Path(__file__).parents[1] / package for package in ("stages", "perceptio_core")]
_CLAIM_WITHIN_S = 120  # an NFS server frees the locks of a host that was lost after 90 s
_ASK_EVERY_S = 0.5
_claims: dict[Path, IO[str]] = {}  # open files, for closing one would give its lock back
log = logging.getLogger(__name__)


def stage_arguments(description: str, *, variant: bool = False) -> argparse.Namespace:
    """Parse a stage's command line and start its log.

    Args:
        description: what the stage reads, does and writes; the text of ``--help``.
        variant: whether the stage runs once per variant of co-training.

    Returns:
        Namespace with ``params`` (Path) and, if asked for, ``variant`` (str).
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--params",
        type=Path,
        default=PARAMS,
        metavar="FILE",
        help=f"the parameters: {PARAMS}, or a profile such as profiles/smoke.yaml (default: {PARAMS})",
    )
    if variant:
        parser.add_argument("--variant", default="full", help="a name under variants (default: full)")
    arguments = parser.parse_args()
    sys.excepthook = _explain
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    return arguments


class StagePaths:
    """Where the stages of one profile keep their files, relative to the repository root (the working directory)."""

    def __init__(self, profile: str) -> None:
        self.profile = profile

    def out(self, stage: str, variant: str | None = None) -> Path:
        """``artifacts/<profile>/<stage>[/<variant>]``: the finished output, written by `publish` alone."""
        return ARTIFACTS.joinpath(self.profile, stage, *([variant] if variant else []))

    def made(self, stage: str, variant: str | None = None) -> Path:
        """``out(stage, variant)``, to read from.

        Raises:
            ValueError: it is absent; says what makes it.
        """
        path = self.out(stage, variant)
        if not path.is_dir():
            node = f"{stage}@{variant}" if variant else stage
            raise ValueError(f"{path}: not there yet; `perceptio repro {node}` makes it")
        return path

    def measured(self, stage: str, variant: str | None = None) -> Path:
        """``artifacts/<profile>/measured/<stage>[@<variant>].json``: what the run that made ``out(stage, variant)`` took.

        It lies apart from the output, which two runs of the same inputs make with the same bytes; DVC does not know it.
        """
        return ARTIFACTS / self.profile / "measured" / f"{'@'.join([stage, *([variant] if variant else [])])}.json"

    def claim(self, stage: str, variant: str | None = None) -> None:
        """Make the work on ``out(stage, variant)`` this process's own until it ends; of a group of ranks, rank 0's.

        For the stages whose work two processes cannot share. Waits a while for another process that has it, since one that was
        killed, or its host, may still be ending. The lock is the kernel's (`flock`; Linux passes it on to an NFS server as a
        lock of the whole file), so it ends with its process however that happens.

        Raises:
            SystemExit: another process still has it; with the exit code EX_TEMPFAIL (75), since another try can help.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        out = self.out(stage, variant)
        path = WORK / self.profile / f"{'@'.join([stage, *([variant] if variant else [])])}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.resolve() in _claims:
            return
        lock = path.open("a+", encoding="utf-8")
        if not _locked(lock):
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            log.warning("%s is at work on %s; waiting at most %d s for it to end", owner, out, _CLAIM_WITHIN_S)
            end = time.monotonic() + _CLAIM_WITHIN_S
            while not _locked(lock):
                if time.monotonic() > end:
                    log.error("%s is still at work on %s; wait for it, or end it, then run this again", owner, out)
                    sys.exit(os.EX_TEMPFAIL)
                time.sleep(_ASK_EVERY_S)
        lock.truncate(0)
        with naming(path):
            lock.write(f"process {os.getpid()} on {socket.gethostname()}, begun {time.strftime('%Y-%m-%d %H:%M:%S')},")
            lock.flush()
        _claims[path.resolve()] = lock

    def work(self, stage: str, fingerprint: str) -> Path:
        """``.work/<profile>/<stage>/<fingerprint>``: work in progress; made if absent, found again if not."""
        path = WORK / self.profile / stage / fingerprint
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # `exist_ok` raises it if another worker removes the folder just then
            path.mkdir()
        return path


def fingerprint(*parts: Any) -> str:
    """A short hash (16 hex digits) of everything that a piece of unfinished work depends on.

    Args:
        parts: a `Path` stands for its content (a folder for all files below it, so name an index with checksums rather
            than the tars it lists); a pydantic model for its values; anything else must be plain JSON.

    Raises:
        FileNotFoundError: a path does not exist.
        TypeError: a part is none of the above.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            described: Any = _content(part)
        elif hasattr(part, "model_dump_json"):
            described = json.loads(part.model_dump_json())
        else:
            described = part
        digest.update(json.dumps(described, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:16]


def _content(path: Path) -> Any:
    if path.is_dir():
        return {file.relative_to(path).as_posix(): _content(file) for file in sorted(path.rglob("*")) if file.is_file()}
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(work: Path, out: Path) -> None:
    """Move the finished folder `work` to `out` in one step, in the place of an older one.

    At any moment `out` is whole or absent, and nothing half-written ever lies below ``artifacts/``. `work` is whole until
    it is gone: whoever is killed here can start again.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    near = work
    if work.stat().st_dev != out.parent.stat().st_dev:
        # artifacts/ is on a disk of its own: bring the bytes over first, so that the rename below stays one step.
        near = out.parent.parent / f".incoming-{out.name}-{work.name}"
        shutil.rmtree(near, ignore_errors=True)
        shutil.copytree(work, near)
    if out.exists():
        old = near.with_name(f"{near.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        near.rename(out)
        shutil.rmtree(old)
    else:
        near.rename(out)
    if near != work:
        shutil.rmtree(work.rename(work.with_name(f"{work.name}.copied")))


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what ended a stage: what this project's own code refuses by its sentence alone, all else with the traceback."""
    raised_in = Path(traceback.extract_tb(trace)[-1].filename) if trace else Path()
    if isinstance(error, ValueError | FileNotFoundError) and any(raised_in.is_relative_to(folder) for folder in _OURS):
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def write_measured(path: Path, measured: Mapping[str, Any]) -> None:
    """Write what was measured of a run: seconds, memory, throughput."""
    path.parent.mkdir(exist_ok=True)
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in measured.items()}
    path.write_text(json.dumps(rounded, indent=2, allow_nan=False) + "\n", encoding="utf-8")
