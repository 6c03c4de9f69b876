"""Stages whose shards any number of workers make together: a worker is the stage's command, started anywhere on one disk.

No worker is the first. Whichever finds a thing undone does it, the plan and the publishing too, and takes over from one that
died at it. The work folder is gone, in one step, when all is published: then every worker ends with 0.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Self

from perceptio_core.data.units import Units
from perceptio_core.files import remove_unfinished, whole_folder
from perceptio_core.progress import track
from stages.common import StagePaths, publish

PUBLISHED = "PERCEPTIO_PUBLISHED"
"""Names a file that is made when the workers of a stage have published. A worker that starts after that has nothing to do.
Where the variable is not set, a stage's command always makes its output."""

_IDENTITY, _REMOVED = "identity", ".removed"
_log = logging.getLogger(__name__)


class SharedWork:
    """A work folder; as a context it ends quietly when another worker has published meanwhile.

    Attributes:
        folder: of all work in progress.
        out: what will be published.
        parts: a file ``<shard>.json`` for every shard that is whole.
    """

    def __init__(self, folder: Path, published: Path) -> None:
        self.folder, self.out, self.parts, self._claims = folder, folder / "out", folder / "parts", folder / "claims"
        self._published = published
        marker = os.environ.get(PUBLISHED)
        self._marker = Path(marker) if marker else None
        self._identity = self._found()

    @classmethod
    def open(cls, paths: StagePaths, stage: str, key: str) -> Self | None:
        """The work folder of a stage, or None if it has been published meanwhile.

        Args:
            paths: of the profile.
            stage: its name.
            key: the fingerprint of what the work depends on.
        """
        folder, published = paths.work(stage, key), paths.out(stage)
        for rest in folder.parent.glob(f".*{_REMOVED}"):
            shutil.rmtree(rest, ignore_errors=True)
        with whole_folder(folder) as new:  # all of it at once, so that nobody makes `out` a second time
            (new / "out").mkdir()
            (new / "parts").mkdir()
            (new / _IDENTITY).write_text(uuid.uuid4().hex, encoding="ascii")
        work = cls(folder, published)
        # A folder made after the last worker's marker is our own and new; one made before it is theirs, and goes with them.
        late = work._marker is not None and work._marker.exists()
        known = work._identity is not None
        if known and not late and work.out.is_dir():
            return work
        # Without `out` its publisher has just moved it, or was killed then; if the output is gone since, DVC has removed it.
        over = late or (known and published.is_dir())
        if over:
            work._mark()  # before the folder is gone, or the next worker would make it, and all in it, anew
        work._discard()
        if over:
            _log.info("%s is published already", published)
            return None
        return cls.open(paths, stage, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(self.folder)  # as when the disk is full: which one?
        quiet = isinstance(error, FileNotFoundError) and self._is_gone() and self._published.is_dir()
        if quiet:
            _log.info("another worker has published %s", self._published)
        return quiet

    def _found(self) -> str | None:
        """What tells the folder that is there now from any other that had or has its name."""
        try:
            return (self.folder / _IDENTITY).read_text(encoding="ascii")
        except FileNotFoundError:
            return None

    def _is_gone(self) -> bool:
        """Whether the work is published and its folder removed; another worker may have made a new one since."""
        return self._identity is None or self._found() != self._identity

    def once(self, name: str, act: Callable[[], None], *, finished: Callable[[], bool]) -> None:
        """See a thing done that one worker does for all."""
        with Units(self._claims, [name], finished=lambda _: finished()) as units:
            while units.left:
                for _ in units.free():
                    act()
                units.wait()

    def make(self, shards: Mapping[str, int], make: Callable[[Iterator[str]], Iterator[None]], *, label: str) -> None:
        """See all shards made.

        Args:
            shards: number of images by name.
            make: makes shards and their parts; yields once an image.
            label: of the lines that show the progress.
        """
        with Units(self._claims, list(shards), finished=lambda name: (self.parts / f"{name}.json").is_file()) as units:
            total = sum(shards[name] for name in units.left)

            def images() -> Iterator[None]:
                """One after the other, whoever made it, as soon as this worker knows."""
                while units.left:
                    for _ in make(units.free()):
                        yield
                        for name in units.made_by_others():
                            yield from repeat(None, shards[name])
                    units.wait()
                    for name in units.made_by_others():
                        yield from repeat(None, shards[name])

            for _ in track(images(), total=total, label=label, unit="images"):
                pass

    def publish(self, assemble: Callable[[], None]) -> None:
        """See the output published, after `assemble` has completed it by what is not in shards."""

        def act() -> None:
            if self.out.is_dir():  # else one was killed who had just moved it
                remove_unfinished(self.out)
                assemble()
                publish(self.out, self._published)
            self._mark()
            self._discard()

        self.once("publish", act, finished=self._is_gone)

    def _mark(self) -> None:
        """Let workers that start from now on know that all is published."""
        if self._marker is not None:
            self._marker.touch()

    def _discard(self) -> None:
        """Remove the work folder, for all workers in one step."""
        if self._found() != self._identity:  # another was quicker, and this is a third one's
            return
        rest = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}{_REMOVED}")
        try:
            self.folder.rename(rest)
        except FileNotFoundError:  # another was quicker
            return
        shutil.rmtree(rest, ignore_errors=True)
