"""What a run shows on a terminal: a line per stage that is done, and below them a line per stage at work, kept up to date.

The whole of what a stage writes is in its log. Without a terminal, or with ``--verbose``, each line is shown as it comes, with
Prefect's prefix (`Screen` then shows nothing of its own).
"""

import os
import re
import sys
import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from perceptio_core.progress import duration
from pipeline.dag import Plan
from pipeline.server import CONSOLE_LEVEL
from stages.common import StagePaths

_LEVEL = re.compile(r"^(?:DEBUG|INFO|(?P<warning>WARNING|ERROR|CRITICAL)) [\w.@]+: ")
_DVC = re.compile(
    r"^(?:Running stage '|> |(?:Updating|Generating) lock file|Stage '|'.*' (?:didn't change|is cached)|Data and pipelines are"
    r"|WARNING: (?:'.*' is empty|Process '.*' with (?:Pid|pid)))"
)
_PROGRESS = re.compile(r"\d.* (?:left|in all|so far)$")
_BAR = re.compile(r"\d+%\|")  # of a library
_LAST_LINES = 20


class Screen:
    """Shows nothing: what the stages write is in the log that shows them."""

    quiet = False

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End, whatever is still at work."""

    def begins(self, stage: str) -> None:
        """A stage starts; any thread may say so, as of the others."""

    def says(self, stage: str, line: str) -> None:
        """A stage has written a line."""

    def ends(self, stage: str, *, seconds: float | None, failure: str | None) -> None:
        """A stage has ended: after how long (None: it did not run), and why it failed, if it did."""


def screen_for(plan: Plan, profile: str, *, verbose: bool) -> Screen:
    """The screen of a run; to be called before Prefect is imported, which then keeps its lines to itself."""
    if verbose or not sys.stderr.isatty() or not sys.stdout.isatty():
        return Screen()
    os.environ[CONSOLE_LEVEL] = "CRITICAL"
    return _Lines(plan, profile)


class _AtWork:
    """A stage that runs."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.now = self.made = ""
        self.last: deque[str] = deque(maxlen=_LAST_LINES)


class _Lines(Screen):
    quiet = True

    def __init__(self, plan: Plan, profile: str) -> None:
        self._width = max(len(node.name) for node in plan.stages)
        self._at_work: dict[str, _AtWork] = {}
        self._begun = False
        self._outputs = StagePaths(profile)
        self._console = Console(highlight=False, soft_wrap=False)
        self._live = Live(console=self._console, get_renderable=self._running, refresh_per_second=4, transient=True)
        later = len(plan.stages) - len(plan.asked)
        self._head = f"profile {profile}: {len(plan.asked)} stages to run" + (f", {later} up to date" if later else "")
        if server := os.environ.get("PREFECT_API_URL"):
            self._head += f"; also at {server.removesuffix('/api')}"

    def __enter__(self) -> Self:
        self._console.print(self._head)
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def begins(self, stage: str) -> None:
        self._begun = True
        self._at_work[stage] = _AtWork()

    def says(self, stage: str, line: str) -> None:
        line = line.rpartition("\r")[2].strip()
        if _DVC.match(line) or not line:
            return
        work, level = self._at_work[stage], _LEVEL.match(line)
        work.last.append(line)
        text = _LEVEL.sub("", line)
        if level and level["warning"]:
            self._live.console.print(Text(f"{stage}: {text}", style="yellow"))
        elif _PROGRESS.search(text) or not (_PROGRESS.search(work.now) or _BAR.search(text)):
            work.now = text
        if line.startswith(f"INFO {stage.partition('@')[0]}: "):
            work.made = text

    def ends(self, stage: str, *, seconds: float | None, failure: str | None) -> None:
        work = self._at_work.pop(stage)
        if failure is not None:
            for line in work.last:
                self._live.console.print(Text(f"  {line}", style="dim"))
            self._print("x", "red", stage, time.monotonic() - work.start, failure)
        elif seconds is None:
            self._print("=", "blue", stage, None, "from DVC's cache")
        else:
            self._print("+", "green", stage, seconds, work.made or work.now or str(self._outputs.out(*stage.split("@"))))

    def _print(self, mark: str, style: str, stage: str, seconds: float | None, text: str) -> None:
        self._live.console.print(self._row(mark, style, stage, seconds, text))

    def _running(self) -> RenderableType:
        rows = Table.grid()
        for stage, work in list(self._at_work.items()):  # other threads add to it and take from it
            rows.add_row(self._row(">", "cyan", stage, time.monotonic() - work.start, work.now or "starting"))
        if not self._begun:
            rows.add_row(Text("starting Prefect's server", style="dim"))
        return rows

    def _row(self, mark: str, style: str, stage: str, seconds: float | None, text: str) -> Text:
        head = f"{stage:{self._width}}  {'' if seconds is None else duration(seconds):>6}  "
        return Text.assemble((f"{mark} ", style), head, _shortened(text, self._console.width - len(head) - 3))


def _shortened(text: str, width: int) -> str:
    """A text in so many columns: its middle is left out, for rate and time left stand at its end."""
    if len(text) <= width:
        return text
    end = max(0, min(width - 1, 34))
    return f"{text[: max(0, width - end - 1)]}…{text[-end:] if end else ''}"
