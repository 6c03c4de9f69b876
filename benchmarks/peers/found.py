"""What was found, and its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import fill

RESULTS = Path("docs/results/peers.json")
PAGE = Path("docs/speed.md")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One comparison.

    Attributes:
        what: was done.
        unit: of both figures; more is better.
        ours: median.
        peer: its name and version.
        theirs: median.
        ratio: ours by theirs; above 1, ours is ahead.
        spread: the smallest and the largest ratio of a pair of neighbouring runs.
        machine: cores and processor.
        commit: of this project.
    """

    what: str
    unit: str
    ours: float
    peer: str
    theirs: float
    ratio: float
    spread: tuple[float, float]
    machine: str
    commit: str


def keep(found: Sequence[Found]) -> None:
    """Put comparisons in place of older ones of the same thing and peer, and renew the page."""
    known: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    renewed = {(one.what, one.peer.partition(" ")[0]) for one in found}
    kept = [row for row in known if (row["what"], row["peer"].partition(" ")[0]) not in renewed]
    rows = sorted([*kept, *map(asdict, found)], key=lambda row: (row["what"], row["peer"]))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    fill(PAGE, table(rows), start="<!-- peers -->", end="<!-- end of peers -->")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of `PAGE`."""
    lines = ["| what | ours | peer | theirs | ratio | of neighbouring runs |", "|---|---:|---|---:|---:|---:|"]
    lines += [
        f"| {row['what']} | {row['ours']:.4g} {row['unit']} | {row['peer']} | {row['theirs']:.4g} | **{row['ratio']:.2f}** | "
        f"{row['spread'][0]:.2f} to {row['spread'][1]:.2f} |"
        for row in rows
    ]
    places = sorted({f"{row['machine']}, commit {row['commit']}" for row in rows})
    return "\n".join([*lines, "", *(f"Measured on {place}." for place in places)]) + "\n"
