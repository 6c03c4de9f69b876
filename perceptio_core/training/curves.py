"""Training curves through DVCLive: one TSV per metric below `<folder>/plots/metrics/`, continued exactly on a resume."""

import csv
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

from dvclive.live import Live
from scmrepo.exceptions import SCMError

from perceptio_core.files import naming


class Curves:
    """Logs metrics by step. A resumed run first drops the rows that the lost steps wrote, so no step appears twice.

    `accelerate.tracking.DVCLiveTracker` drops none, and counts each call as a step, of which validation is none: so ours.
    """

    def __init__(self, *, folder: Path, step: int) -> None:
        """Open or continue the curves.

        Args:
            folder: DVCLive's folder; survives between attempts.
            step: steps done before this attempt; rows beyond it are dropped. 0 starts afresh.
        """
        for path in folder.glob("plots/metrics/**/*.tsv"):
            _drop_rows(path=path, after=step)
        self._folder = folder
        self._live = _live(folder.absolute(), resume=step > 0)

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Add one row at `step` (steps done) to each metric's curve; names may contain `/` (`train/total`)."""
        self._live.step = step
        with naming(self._folder):
            for name, value in metrics.items():
                self._live.log_metric(name, value)

    def close(self) -> None:
        """Write DVCLive's summary of the latest values."""
        self._live.end()  # type: ignore[no-untyped-call]


def _live(folder: Path, *, resume: bool) -> Live:
    def opened() -> Live:
        return Live(dir=str(folder), resume=resume, save_dvc_exp=False, dvcyaml=None, report=None)

    try:
        return opened()
    except SCMError:  # a Git repository without a commit (treeverse/dvclive#522): look for it where there is none
        with chdir(folder.anchor):
            return opened()


def read_curve(path: Path) -> tuple[list[int], list[float]]:
    """Steps and values of one curve file (non-finite values included as floats)."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return [int(row["step"]) for row in rows], [float(row[path.stem]) for row in rows]


def _drop_rows(*, path: Path, after: int) -> None:
    """Keep the header and the whole rows up to step `after`; a last line cut off by a kill goes too."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in lines[1:] if row.endswith("\n") and int(row.split("\t", 1)[0]) <= after]
    if kept:
        path.write_text("".join([lines[0], *kept]), encoding="utf-8")
    else:
        path.unlink()
