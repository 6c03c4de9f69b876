"""``perceptio data check``: what of a profile's data is there, what is missing and where to get it, whether it can be read, and
the disk it takes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perceptio_core.data.images import is_picture
from perceptio_core.data.readers.refer import read_plain_pickle
from perceptio_core.data.records import spread
from perceptio_core.evaluation.benchmarks.official_files import MD5, described
from perceptio_core.inputs import look_at_inputs
from perceptio_core.params.profile import Profile, load_profile
from perceptio_core.progress import amount, track
from pipeline.data_places import EXPRESSIONS, IMAGE_COUNTS, Place, places
from stages.inputs import disk_needed

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_LOOKED_AT = 200  # files of a folder whose names do not tell what they are
_OTHERS = {".txt", ".json", ".jsonl", ".md", ".parquet", ".tsv", ".csv", ".py", ".npy", ".zip", ".p"}


@dataclass(frozen=True, kw_only=True)
class State:
    """What was found at one place.

    Attributes:
        word: "ok", "missing", or "differs" from what is published.
        told: size, counts, and what differs.
        images, size: pictures in a folder, and bytes.
    """

    word: str
    told: str
    images: int = 0
    size: int = 0


def check(name: str | None) -> bool:
    """Print the state of every place that the profile reads, and the disk that its stages will need.

    Returns:
        whether everything is there and is what was published.

    Raises:
        ValueError: no such profile, it does not validate, or its data root is absent.
    """
    profile = load_profile(name)
    if profile.sources.render is not None:
        print(f"Profile {name} renders its own data: nothing has to be there.")
        return True
    root = profile.sources.expanded_root()
    wanted = places(profile)
    states = [look(place, root=root) for place in track(wanted, label=f"checking {root}", unit="places")]
    width = max(len(place.path) for place in wanted)
    for place, state in zip(wanted, states, strict=True):
        print(f"{state.word:<8} {place.path:<{width}}  {state.told}")
        if state.word != "ok":
            print(f"{'':<8} for {', '.join(place.used_by)}; to be had from {place.source.origin}")
    bad = Counter(state.word for state in states)
    rest = "".join(f", {bad[word]} {said}" for word, said in (("missing", "missing"), ("differs", "different")) if bad[word])
    print(f"\n{bad['ok']} of {len(states)} places are there{rest}\n")
    findings = list(track(look_at_inputs(profile, root=root), label="opening what the stages read", unit="inputs"))
    for finding in findings:
        print(
            f"{'opened' if finding.fault is None else 'fault':<8} {finding.what}: {finding.fault or finding.note}".rstrip(": ")
        )
    faults = sum(finding.fault is not None for finding in findings)
    print(f"\n{len(findings) - faults} of {len(findings)} inputs can be read\n")
    print("\n".join(_disk(profile, wanted, states)))
    return bad["ok"] == len(states) and not faults


def look(place: Place, *, root: Path) -> State:
    """The state of one place; nothing large is read but a table of which the md5 is published."""
    path = root / place.path
    if "*" in place.path:
        found = sorted(path.parent.glob(path.name.replace("(", "[(]").replace(")", "[)]")))
        if len(found) != 1:
            return State(word="missing", told=f"expected one such file, there are {len(found)}")
        path = found[0]
    if path.is_dir():
        return _look_at_folder(path)
    if not path.is_file():
        return State(word="missing", told="")
    size = path.stat().st_size
    told = amount(size)
    if size == 0:
        return State(word="differs", told="the file is empty")
    if path.stem in MD5.values():
        if described(path) != path.stem:
            return State(word="differs", told=f"{told}, its md5 is not that of the published {path.stem}", size=size)
        told += ", md5 as published"
    if path.suffix == ".p":
        return _look_at_references(path, told)
    return State(word="ok", told=told, size=size)


def _look_at_folder(path: Path) -> State:
    images = size = files = 0
    bare: list[str] = []  # names that tell nothing, such as SEED-Bench's
    for entry in _files(path):
        suffix = Path(entry.name).suffix.lower()
        files += 1
        images += suffix in _SUFFIXES
        bare += [] if suffix in _SUFFIXES | _OTHERS else [entry.path]
        size += entry.stat().st_size
    some = spread(bare, _LOOKED_AT)
    images += round(len(bare) * sum(is_picture(Path(file)) for file in some) / max(1, len(some)))
    if size == 0:
        return State(word="missing", told="the folder is empty")
    published = IMAGE_COUNTS.get(path.name)
    told = f"{f'{images:,} images' if images else f'{files:,} files'}, {amount(size)}"
    if published is not None and images != published:
        return State(word="differs", told=f"{told}; published are {published:,} images", images=images, size=size)
    return State(word="ok", told=told, images=images, size=size)


def _look_at_references(path: Path, told: str) -> State:
    try:
        counts = Counter[str]()
        for ref in read_plain_pickle(path):
            counts[ref["split"]] += len(ref["sentences"])
    except (ValueError, TypeError, KeyError) as error:
        return State(word="differs", told=f"{told}; not REFER's references: {error}")
    told += "; expressions: " + ", ".join(f"{split} {count:,}" for split, count in sorted(counts.items()))
    published = EXPRESSIONS.get((path.parent.name, path.stem.removeprefix("refs(").removesuffix(")")), {})
    if wrong := [f"{split} {count:,}" for split, count in published.items() if counts[split] != count]:
        return State(word="differs", told=f"{told}; published are {', '.join(wrong)}", size=path.stat().st_size)
    return State(word="ok", told=told, size=path.stat().st_size)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(Path(entry.path))
            elif entry.is_file():
                yield entry


def _disk(profile: Profile, wanted: list[Place], states: list[State]) -> Iterator[str]:
    """What the stages keep of the training pictures that are there now."""
    pictures = [state for place, state in zip(wanted, states, strict=True) if place.pictures]
    images, size = sum(state.images for state in pictures), sum(state.size for state in pictures)
    needed = disk_needed(profile, images=images, size=size)
    free = shutil.disk_usage(Path()).free
    yield f"Disk for the {images:,} training pictures that are there, {amount(size)}; here {amount(free)} are free:"
    long_side = profile.teacher_depth.long_side
    yield f"  teacher_depth  at most {amount(needed['teacher_depth'])} (16 bits a pixel at {long_side} x 3/4 of it)"
    yield f"  joint_shards   {amount(needed['joint_shards'])} (each picture once), and what is said about them"
    yield "  foundations, cotrain  as the first lines of the profile say"
