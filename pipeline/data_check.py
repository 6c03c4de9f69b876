"""``perceptio data check``: what of a profile's data is there, what is missing and where to get it, and the disk it takes."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perceptio_core.data.refer import read_plain_pickle
from perceptio_core.evaluation.official_files import MD5, described
from perceptio_core.params import Profile, load_profile
from perceptio_core.progress import track
from pipeline.data_places import EXPRESSIONS, IMAGE_COUNTS, Place, places

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


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


def check(name: str) -> bool:
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
            print(f"{'':<8} for {', '.join(place.used_by)}; to be had from {place.origin}")
    bad = Counter(state.word for state in states)
    rest = "".join(f", {bad[word]} {said}" for word, said in (("missing", "missing"), ("differs", "different")) if bad[word])
    print(f"\n{bad['ok']} of {len(states)} places are there{rest}")
    print("\n".join(_disk(profile, wanted, states)))
    return bad["ok"] == len(states)


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
    told = _bytes(size)
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
    for entry in _files(path):
        files += 1
        images += Path(entry.name).suffix.lower() in _IMAGES
        size += entry.stat().st_size
    if size == 0:
        return State(word="missing", told="the folder is empty")
    published = IMAGE_COUNTS.get(path.name)
    told = f"{f'{images:,} images' if images else f'{files:,} files'}, {_bytes(size)}"
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
    maps = images * 2 * profile.teacher_depth.long_side**2 * 3 // 4
    free = shutil.disk_usage(Path()).free
    yield f"Disk for the {images:,} training pictures that are there, {_bytes(size)}; here {_bytes(free)} are free:"
    yield f"  teacher_depth  at most {_bytes(maps)} (16 bits a pixel at {profile.teacher_depth.long_side} x 3/4 of it)"
    yield f"  joint_shards   {_bytes(size)} for each sample that is made of a picture (each holds it)"
    yield "  foundations, cotrain  as the first lines of the profile say"


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
