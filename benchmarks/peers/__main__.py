"""``python -m benchmarks.peers``: measures, prints, keeps the figures, and renews the page."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.peers.found import PAGE, RESULTS, Found, keep
from benchmarks.peers.learning import answers, codebook, teacher, training
from benchmarks.peers.shards import shards


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=f"Ours beside its peers; the figures go to {RESULTS} and {PAGE}.")
    parser.add_argument(
        "comparisons", nargs="*", metavar="COMPARISON", help="such as shards, or codebook training; all by default"
    )
    parser.add_argument("--pictures", type=Path, help="a folder of JPEG photographs; shards and teacher need it")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts/mini"), help="what `make demo` made (%(default)s)")
    parser.add_argument("--count", type=int, default=1500, help="entries of the shards (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (%(default)s)")
    arguments = parser.parse_args()
    repeats, artifacts, pictures = arguments.repeats, arguments.artifacts, arguments.pictures
    with tempfile.TemporaryDirectory() as folder:
        all_of_them: dict[str, Callable[[], Iterator[Found]]] = {
            "shards": lambda: shards(Path(folder), pictures=pictures, count=arguments.count, repeats=repeats),
            "teacher": lambda: teacher(artifacts, pictures=pictures, count=60, repeats=repeats),
            "codebook": lambda: codebook(artifacts, steps=700, repeats=repeats),
            "training": lambda: training(artifacts, steps=10, repeats=repeats),
            "answers": lambda: answers(artifacts, count=32, repeats=repeats),
        }
        wanted = arguments.comparisons or list(all_of_them)
        if unknown := [name for name in wanted if name not in all_of_them]:
            parser.error(f"unknown: {', '.join(unknown)}; allowed are {', '.join(all_of_them)}")
        if pictures is None and {"shards", "teacher"} & set(wanted):
            parser.error("shards and teacher need --pictures FOLDER")
        found: list[Found] = []
        for name in wanted:
            for one in all_of_them[name]():
                found.append(one)
                print(f"{one.what}: {one.ratio:.2f} times {one.peer}", flush=True)
                keep(found)


if __name__ == "__main__":
    main()
