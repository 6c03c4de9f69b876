"""``python -m benchmarks.peers``: measures, prints, keeps the figures, and renews the page."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.peers.found import PAGE, RESULTS, Found, keep
from benchmarks.peers.shards import shards


def main() -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=f"Ours beside its peers; the figures go to {RESULTS} and {PAGE}.")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of JPEG photographs")
    parser.add_argument("--count", type=int, default=1500, help="entries of the shards")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found: list[Found] = []
    with tempfile.TemporaryDirectory() as folder:
        for one in shards(Path(folder), pictures=arguments.pictures, count=arguments.count, repeats=arguments.repeats):
            found.append(one)
            print(f"{one.what}: {one.ratio:.2f} times {one.peer}", flush=True)
            keep(found)


if __name__ == "__main__":
    main()
