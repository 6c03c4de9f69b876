"""Training curves through DVCLive: one TSV per metric below `<folder>/plots/metrics/`, continued exactly on a resume.

TensorBoard or Weights & Biases shows them as well, where the variable PERCEPTIO_CURVES says so: below `runs/`, or as runs of
the project `perceptio`. Both are no part of a stage's output.
"""

import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from dvclive.live import Live
from scmrepo.exceptions import SCMError

from perceptio_core.files import naming
from perceptio_core.params.curves import PLACES, VARIABLE

RUNS = Path("runs")
"""TensorBoard's folder: ``tensorboard --logdir runs``."""


class Curves:
    """Logs metrics by step. A resumed run first drops the rows that the lost steps wrote, so no step appears twice.

    `accelerate.tracking.DVCLiveTracker` drops none, and counts each call as a step, of which validation is none: so ours.
    """

    def __init__(self, *, folder: Path, step: int) -> None:
        """Open or continue the curves.

        Args:
            folder: DVCLive's folder; survives between attempts.
            step: steps done before this attempt; rows beyond it are dropped. 0 starts afresh.

        Raises:
            ValueError: PERCEPTIO_CURVES names nothing that there is, or what is not installed.
        """
        for path in folder.glob("plots/metrics/**/*.tsv"):
            _drop_rows(path=path, after=step)
        self._folder = folder
        self._shown = _shown(folder, step=step)
        self._live = _live(folder.absolute(), resume=step > 0)

    def log(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Add one row at `step` (steps done) to each metric's curve; names may contain `/` (`train/total`)."""
        self._live.step = step
        with naming(self._folder):
            for name, value in metrics.items():
                self._live.log_metric(name, value)
        if self._shown is not None:
            self._shown.log(dict(metrics), step=step)

    def close(self) -> None:
        """Write DVCLive's summary of the latest values."""
        self._live.end()  # type: ignore[no-untyped-call]
        if self._shown is not None:
            self._shown.finish()


def _live(folder: Path, *, resume: bool) -> Live:
    def opened() -> Live:
        return Live(dir=str(folder), resume=resume, save_dvc_exp=False, dvcyaml=None, report=None)

    try:
        return opened()
    except SCMError:  # a Git repository without a commit (treeverse/dvclive#522): look for it where there is none
        with chdir(folder.anchor):
            return opened()


def _shown(folder: Path, *, step: int) -> GeneralTracker | None:
    """What shows the curves besides; a resumed run goes on as the same one, named by its folder of work."""
    place = os.environ.get(VARIABLE)
    if not place:
        return None
    if place not in PLACES:
        raise ValueError(f"{VARIABLE}: {place!r}; allowed are {', '.join(PLACES)}")
    *above, work = folder.absolute().parent.parts[-3:]  # profile, stage, and the variant with the fingerprint of its inputs
    try:
        if place == "tensorboard":
            tracker = TensorBoardTracker("/".join([*above, work]), RUNS, purge_step=step + 1)
        else:
            tracker = WandBTracker("perceptio", id="-".join([*above, work]), name=work, group="/".join(above), resume="allow")
        tracker.start()
    except ImportError as error:
        raise ValueError(f"curves: {place} is not installed; `pip install {place}` brings it") from error
    return tracker


def _drop_rows(*, path: Path, after: int) -> None:
    """Keep the header and the whole rows up to step `after`; a last line cut off by a kill goes too."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in lines[1:] if row.endswith("\n") and int(row.split("\t", 1)[0]) <= after]
    if kept:
        path.write_text("".join([lines[0], *kept]), encoding="utf-8")
    else:
        path.unlink()
