"""What a second worker brings, and what Ray costs: ``python -m benchmarks.engines PROFILE`` on two free cores.

Where `perceptio repro` has made the profile's artifacts, it runs `teacher_depth` and `evaluate` once more, into a scratch
folder: by one worker that has one core, and by two that have one each. Then it has equal units of some ten seconds done, which
read and write nothing, by two workers of this machine and by two of a Ray of it. Prints seconds of whole commands, their start
included.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from perceptio_core.engine import Engine, Local
from perceptio_core.params.profile import complete
from perceptio_core.params.values import PROFILES, read_values

_BLOCK = bytes(2**20)
_BLOCKS_OF_A_TRY = 1000


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--only", choices=["teacher_depth", "evaluate", "units"])
    parser.add_argument("--units", type=int, default=24, help="of ten seconds (default: 24)")
    parser.add_argument("--by", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.by:
        by_units(arguments.by[0], arguments.units, int(arguments.by[1]))
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    for stage, more in (("teacher_depth", []), ("evaluate", ["--variant", "full"])):
        if arguments.only in (None, stage):
            one, two = (stage_s(arguments.profile, [stage, *more], cores[:workers]) for workers in (1, 2))
            print(f"{stage}: {one:.1f} s by one worker, {two:.1f} s by two: {one / two:.2f} times as fast", flush=True)
    if arguments.only in (None, "units"):
        began = time.perf_counter()
        hashed(_BLOCKS_OF_A_TRY, 0)
        blocks = round(10 / (time.perf_counter() - began) * _BLOCKS_OF_A_TRY)
        command = [sys.executable, "-m", "benchmarks.engines", arguments.profile, "--units", str(arguments.units), "--by"]
        local, ray = (seconds([*command, by, str(blocks)], cores) for by in ("local", "ray"))
        print(f"{arguments.units} units: {local:.1f} s by the pool, {ray:.1f} s by Ray: {100 * (ray / local - 1):+.1f} %")


def stage_s(profile: str, stage: Sequence[str], cores: Sequence[int]) -> float:
    """Seconds of a stage's command with a worker for each core: GPUs that are not there are a process each, on the CPU."""
    made = Path("artifacts", profile).resolve()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder, "artifacts", profile)
        here.mkdir(parents=True)
        for other in made.iterdir():
            if other.name not in (stage[0], "measured"):
                (here / other.name).symlink_to(other)
        values = complete(read_values(PROFILES / f"{profile}.yaml")).plain
        values["teacher_depth"]["images_per_shard"] = 128  # units enough for two
        Path(folder, "params.yaml").write_text(yaml.safe_dump({"profile": profile, "active": ["full"], **values}))
        gpus = ",".join(map(str, range(len(cores)))) if len(cores) > 1 else ""
        more = {"CUDA_VISIBLE_DEVICES": gpus, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        return seconds([sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]], cores, folder=folder, **more)


def by_units(engine: str, count: int, blocks: int) -> None:
    """Have the units done."""
    by: Engine = Local(2)
    if engine == "ray":
        from stages.on_ray import OnRay

        by = OnRay("local", gpu=False)
    assert len(list(by.map(partial(_hasher, blocks), range(count)))) == count


def _hasher(blocks: int) -> Callable[[int], str]:
    return partial(hashed, blocks)


def hashed(blocks: int, number: int) -> str:
    """The work of a unit: one core and no memory."""
    digest = hashlib.sha256(str(number).encode())
    for _ in range(blocks):
        digest.update(_BLOCK)
    return digest.hexdigest()


def seconds(command: Sequence[str], cores: Sequence[int], *, folder: str = ".", **more: str) -> float:
    """Of a command that has these cores."""
    bound = ["taskset", "--cpu-list", ",".join(map(str, cores))]
    began = time.perf_counter()
    subprocess.run(
        [*bound, *command], cwd=folder, env=os.environ | more, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
