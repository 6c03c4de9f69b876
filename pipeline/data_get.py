"""``perceptio data get``: bring what a profile reads and is missing, each archive from where its makers serve it.

An archive lies in ``.downloads`` below the data root until its files are where `data check` and the readers look for them. What
is there is left alone, so a second call finds nothing to do; one that was killed goes on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from perceptio_core.hub import download_file
from perceptio_core.params.profile import load_profile
from perceptio_core.progress import Transfer, amount
from pipeline.data_archives import ARCHIVES, Archive
from pipeline.data_places import Place, places
from pipeline.download import Wanted, client, fetch
from pipeline.unpack import unpack

AT_ONCE = 4
"""Archives that are fetched at the same time."""
DOWNLOADS = ".downloads"


def get(name: str | None, *, only: Sequence[str] = (), accept: bool = False) -> bool:
    """Fetch and lay out what is missing.

    Args:
        name: of the profile; None: what params.yaml holds.
        only: names of data sets, benchmarks (as the profile has them) or archives; none: all.
        accept: whether the licences are accepted; else they are asked for, where somebody can be asked.

    Returns:
        whether all that can be fetched is there; what needs a step by hand is said.

    Raises:
        ValueError: no such profile or name, the data root is absent, the licences are not accepted, the disk will not do, or
            another call is at work there.
    """
    profile = load_profile(name)
    if profile.sources.render is not None:
        print(f"Profile {name} renders its own data: nothing is to be fetched.")
        return True
    root = profile.sources.expanded_root()
    wanted = _chosen(places(profile), only)
    missing = [place for place in wanted if not is_there(root / place.path)]
    by_hand = [place for place in missing if place.source.step is not None]
    archives: dict[str, list[Place]] = {}
    for place in missing:
        if place.source.step is None:
            archives.setdefault(place.archive, []).append(place)
    if not missing:
        print(f"Nothing to do: all {len(wanted)} places are there below {root}; `perceptio data check` opens them.")
        return True
    print(f"{len(wanted) - len(missing)} of {len(wanted)} places are there below {root}.")
    failed: dict[str, str] = {}
    if archives:
        with _alone(root):
            _announce(archives, root)
            _agree([ARCHIVES[archive] for archive in archives], accept)
            failed = _bring(archives, root)
    for place in by_hand:
        print(f"by hand  {place.path} (for {', '.join(place.used_by)}): {place.source.step}")
    for archive, reason in failed.items():
        print(f"failed   {archive} (for {', '.join(place.path for place in archives[archive])}): {reason}")
    print(
        f"{len(archives) - len(failed)} of {len(archives)} archives are laid out; `perceptio data check` opens what is there."
    )
    return not failed


def is_there(path: Path) -> bool:
    """Whether something lies at a place: a file that is not empty, or a folder that holds something."""
    if "*" in path.name:
        return any(path.parent.glob(path.name.replace("(", "[(]").replace(")", "[)]")))
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def _chosen(all_places: list[Place], only: Sequence[str]) -> list[Place]:
    if not only:
        return all_places
    names = {name for place in all_places for name in (*place.used_by, place.archive)}
    if unknown := sorted(set(only) - names):
        raise ValueError(f"--only {', '.join(unknown)}: the profile has none such; it has {', '.join(sorted(names))}")
    return [place for place in all_places if {*place.used_by, place.archive} & set(only)]


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the downloads of a data root; raises ValueError where another process does."""
    folder = root / DOWNLOADS
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another `perceptio data get` is at work there; wait for it") from error
        yield
    if not [file for file in folder.iterdir() if file.name != "lock"]:
        shutil.rmtree(folder)


def _announce(archives: Mapping[str, list[Place]], root: Path) -> None:
    """Say what will be fetched; raises ValueError where the disk cannot hold what is known of it."""
    known = 0
    for name, wanted in archives.items():
        archive = ARCHIVES[name]
        known += archive.size or 0
        size = "size not known to us" if archive.size is None else amount(archive.size)
        print(f"fetch    {name}: {archive.origin} ({size}) -> {', '.join(place.path for place in wanted)}")
    here = sum(file.stat().st_size for file in (root / DOWNLOADS).rglob("*") if file.is_file())
    free = shutil.disk_usage(root).free
    print(f"{amount(known)} of known size; unpacked they take about as much again for a while; {amount(free)} are free")
    if known - here > free:
        raise ValueError(f"{root}: {amount(known - here)} are to come, and {amount(free)} are free")


def _agree(archives: Iterable[Archive], accept: bool) -> None:
    """Raises ValueError unless the licences are accepted."""
    licences = {archive.licence: None for archive in archives}
    print("By fetching them you accept, as far as their terms are known to us:")
    for licence in licences:
        print(f"  {licence.name}: {licence.page}")
    if accept:
        return
    if not sys.stdin.isatty():
        raise ValueError("the licences above are not accepted yet: read them, and say so by --accept-licences")
    if input("Accept them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ValueError("the licences are not accepted: nothing was fetched")


def _bring(archives: Mapping[str, list[Place]], root: Path) -> dict[str, str]:
    """Fetch and lay out several archives at once; what failed, and why."""
    total = sum(ARCHIVES[name].size or 0 for name in archives)
    progress, failed = Transfer(label="data get", total=total), {}
    with client() as http, ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {name: pool.submit(_bring_one, name, wanted, root, http, progress) for name, wanted in archives.items()}
        try:
            for name, job in jobs.items():
                try:
                    job.result()
                except (ValueError, OSError) as error:
                    failed[name] = str(error)
        except KeyboardInterrupt:
            # Python would wait for the threads, one of which may wait for a server. What they leave is what a kill leaves.
            print("stopped; the same command goes on where this one stood", flush=True)
            os._exit(128 + signal.SIGINT)
    progress.end()
    return failed


def _bring_one(name: str, wanted: Sequence[Place], root: Path, http: httpx.Client, progress: Transfer) -> None:
    archive = ARCHIVES[name]
    folder = root / DOWNLOADS / name
    folder.mkdir(exist_ok=True)
    if archive.hub is not None:
        file = download_file(
            archive.hub.repo, archive.hub.file, revision=archive.hub.revision, folder=folder, progress=progress
        )
    else:
        file = folder / archive.file
        fetch(Wanted(urls=archive.urls, size=archive.size, digest=archive.digest), file, http=http, progress=progress)
    targets = {place.member: root / _target(place) for place in wanted}
    if "" in targets:
        target = targets[""]
        if target.suffix != file.suffix:  # a place that is a folder
            target = target / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
    else:
        try:
            unpack(file, targets)
        except ValueError:
            file.unlink()  # it would not be any better the next time
            raise
    shutil.rmtree(folder)


def _target(place: Place) -> str:
    """Where a place's member goes: a ``*`` of the path stands for the member's own name."""
    return str(Path(place.path).parent / Path(place.member).name) if "*" in place.path else place.path
