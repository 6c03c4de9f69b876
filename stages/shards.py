"""What stages share whose output is shards: an engine makes those that no earlier run, killed on its way, has left whole."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Self, TypeVar

from perceptio_core.files import remove_unfinished
from perceptio_core.progress import track
from stages.common import StagePaths, publish
from stages.engines import engine

Part = TypeVar("Part")


class ShardWork:
    """The work folder of a stage, this process's own; as a context it names itself in errors that name no file.

    Args:
        paths: of the profile.
        stage: its name.
        key: the fingerprint of what the work depends on.

    Attributes:
        folder: of all work in progress.
        out: what will be published; shards appear in it whole.
        parts: a file ``<shard>.json`` for every shard that is there, with what the index needs to know of it.
    """

    def __init__(self, paths: StagePaths, stage: str, key: str) -> None:
        paths.claim(stage)
        self._published = paths.out(stage)
        self.folder = paths.work(stage, key)
        self.out, self.parts = self.folder / "out", self.folder / "parts"
        if not self.out.is_dir():  # a run was killed that had just published it
            shutil.rmtree(self.folder)
        for folder in (self.folder, self.out, self.parts):
            folder.mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(self.folder)

    def part(self, shard: str) -> Path:
        """The file of a shard."""
        return self.parts / f"{shard}.json"

    def make(
        self,
        shards: Mapping[str, int],
        make: Callable[[], Callable[[str], Part]],
        *,
        keep: Callable[[Path, Part], None],
        label: str,
        workers: int = 1,
        gpu: bool = False,
    ) -> None:
        """See all shards made.

        Args:
            shards: number of images by name.
            make: gives what makes a shard, by its name, and returns its part; see `perceptio_core.engine.Engine.map`.
            keep: writes a part to its file, here and nowhere else: a file that a worker has written on another machine may
                take a minute to be seen.
            label: of the lines that show the progress.
            workers: as `stages.engines.engine` has it.
            gpu: likewise.
        """
        left = {name: images for name, images in shards.items() if not self.part(name).is_file()}
        if not left:
            return

        def images() -> Iterator[None]:
            for name, part in engine(workers=workers, gpu=gpu).map(make, left):
                keep(self.part(name), part)
                yield from repeat(None, left[name])

        for _ in track(images(), total=sum(left.values()), label=label, unit="images"):
            pass

    def publish(self) -> None:
        """Move `out` to its place; the work folder goes."""
        remove_unfinished(self.out)
        publish(self.out, self._published)
        shutil.rmtree(self.folder)
