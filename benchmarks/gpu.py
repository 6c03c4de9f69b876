"""All that waits for a borrowed GPU, in the order of its worth, within so many minutes.

``python -m benchmarks.gpu --minutes 9 --out gpu``: each measurement is a program of its own with what is left of the time,
writes its file below `--out` as it goes, and is ended when the time is over; a failed one does not stop the next.

1. training steps, memory and answers of 8B and 4B (`benchmarks.full_size`; attention kernels first);
2. useful tokens a second on the real mix, packed and padded (`benchmarks.packing`);
3. depth codes one by one, in parallel and by `transformers`, where there is a trained model (`benchmarks.decoding`);
4. the same as 1 for 1B.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MODEL = Path("artifacts/mini/cotrain/full/checkpoint")
_END_S = 10.0  # before the time is over, a program that still runs is ended, so that its file can be taken along
_LEAST_S = 20.0  # less is not enough for any


@dataclass(frozen=True)
class Measurement:
    """A program and what it is given.

    Attributes:
        name: of its file.
        arguments: of Python; ``{out}`` is its file, ``{seconds}`` what is left.
        needs: without this path it is left out.
    """

    name: str
    arguments: tuple[str, ...]
    needs: Path | None = None


def _full_size(*profiles: str) -> tuple[str, ...]:
    return ("-m", "benchmarks.full_size", "--profiles", *profiles, "--budget", "{seconds}", "--out", "{out}")


MEASUREMENTS = (
    Measurement("full_size_8b_4b", _full_size("perceptio-8b", "perceptio-4b")),
    Measurement("packing_real", ("-m", "benchmarks.packing", "real", "--budget", "{seconds}", "--out", "{out}")),
    Measurement("decoding", ("-m", "benchmarks.decoding", "--out", "{out}"), needs=MODEL),
    Measurement("full_size_1b", _full_size("perceptio-1b")),
)


def main() -> None:
    """Measure, and print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing runs any more (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("artifacts/gpu"), help="folder of the files (%(default)s)")
    arguments = parser.parse_args()
    measure(MEASUREMENTS, out=arguments.out, seconds=60 * arguments.minutes)


def measure(measurements: Sequence[Measurement], *, out: Path, seconds: float) -> dict[str, str]:
    """Run each in turn; how each ended, also in ``ended.json``.

    Args:
        measurements: the programs, in their order.
        out: folder of their files and logs.
        seconds: for all of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds - _END_S
    ended: dict[str, str] = {}
    for one in measurements:
        left = deadline - time.monotonic()
        if one.needs is not None and not one.needs.exists():
            ended[one.name] = f"left out: {one.needs} is not there"
        elif left < _LEAST_S:
            ended[one.name] = "no time left"
        else:
            ended[one.name] = _run(one, out=out, seconds=left)
        print(f"{one.name}: {ended[one.name]}", flush=True)
        (out / "ended.json").write_text(json.dumps(ended, indent=1) + "\n", encoding="utf-8")
    return ended


def _run(one: Measurement, *, out: Path, seconds: float) -> str:
    known = {"out": str(out / f"{one.name}.json"), "seconds": f"{0.8 * seconds:.0f}"}  # the last part is for what has begun
    command = [sys.executable, *(argument.format(**known) for argument in one.arguments)]
    started = time.monotonic()
    with (out / f"{one.name}.log").open("w", encoding="utf-8") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"ended when the time was over, after {seconds:.0f} s"
    return f"{'done' if code == 0 else f'failed with exit code {code}'} after {time.monotonic() - started:.0f} s"


if __name__ == "__main__":
    main()
