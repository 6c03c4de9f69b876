"""Gathers what was run of the ablation study, and renews docs/results.md: ``python -m benchmarks.study``."""

import argparse
from pathlib import Path

from benchmarks.study.figure import draw
from benchmarks.study.rows import gather, merge, read_rows, write_rows
from benchmarks.study.tables import fill
from stages.common import ARTIFACTS


def main() -> None:
    """Merge the rows at hand and write the page; a user's mistake is one sentence."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="further files of rows, such as from another machine")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs"),
        help="folder of results.md, labels.png and results/studio.json (default: docs)",
    )
    arguments = parser.parse_args()
    for file in arguments.rows:
        if not file.is_file():
            parser.error(f"{file}: not found")
    file = arguments.out / "results" / "studio.json"
    try:
        rows = merge(read_rows(file), *(read_rows(other) for other in arguments.rows), gather(ARTIFACTS))
        write_rows(file, rows)
        fill(arguments.out / "results.md", rows)
        draw(arguments.out / "labels.png", rows)
    except ValueError as error:
        parser.error(str(error))
    print(f"{file}: {len(rows)} rows; {arguments.out / 'results.md'}")


if __name__ == "__main__":
    main()
