"""Parts of an archive to their places; a member's name is never trusted as a path.

An archive is refused whole where a member leads out of it, is a link or a device, is encrypted or stands twice, or where what
it would unpack to is out of all proportion. Nothing is at a place before all of it is: it is unpacked beside it first, so one
that was cut off begins anew.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from perceptio_core.progress import amount, track

MOST_MEMBERS = 2_000_000
MOST_RATIO = 100
"""Bytes unpacked for one of the archive: text is packed to a twentieth, a bomb to a thousandth."""
_ALWAYS_ALLOWED = 1 << 26
_CHUNK = 1 << 20
INNER = "!/"


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    size: int
    content: IO[bytes]


def unpack(archive: Path, parts: Mapping[str, Path]) -> None:
    """Unpack some members.

    Args:
        archive: a .zip, or a .tar in any packing.
        parts: by member, a file or folder of the archive (or, behind ``!/``, of an archive in it), where it goes.

    Raises:
        ValueError: no such archive, a member that may not be, a part that is not in it, or no room; names archive and member.
    """
    nested = {member: place for member, place in parts.items() if INNER in member}
    staged = {place: place.with_name(f".{place.name}.unpacking") for place in parts.values()}
    outer = {
        member.partition(INNER)[0]: staged[place].with_name(f"{staged[place].name}.zip") for member, place in nested.items()
    }
    direct = {member: staged[place] for member, place in parts.items() if member not in nested}
    try:
        _to_places(archive, direct | outer)
        for member, place in nested.items():
            name, _, inner = member.partition(INNER)
            _to_places(outer[name], {inner: staged[place]})
        for place, unpacked in staged.items():
            if place.is_dir():
                place.rmdir()  # empty, or it was no missing place
            unpacked.rename(place)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{archive}: cannot be unpacked: {error}") from error
    finally:
        for rest in (*staged.values(), *outer.values()):
            _remove(rest)


def _to_places(archive: Path, places: Mapping[str, Path]) -> None:
    for place in places.values():
        _remove(place)
        place.parent.mkdir(parents=True, exist_ok=True)
    found = set()
    for member in track(_members(archive, tuple(places)), label=f"unpacking {archive.name}", unit="files"):
        part = _part_of(member.name, places)
        if part is None:
            continue
        found.add(part)
        target = places[part] / member.name.removeprefix(part).lstrip("/") if member.name != part else places[part]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                shutil.copyfileobj(member.content, stream, _CHUNK)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise ValueError(f"{archive}: {member.name!r} stands twice in it") from error
        if target.stat().st_size != member.size:
            raise ValueError(f"{archive}: {member.name!r} has {target.stat().st_size:,} bytes, not the {member.size:,} it says")
    if lacking := [part for part in places if part not in found]:
        raise ValueError(f"{archive}: holds no {', '.join(lacking)}")


def _part_of(name: str, parts: Mapping[str, Path]) -> str | None:
    return next((part for part in parts if name == part or name.startswith(f"{part}/")), None)


def _members(archive: Path, parts: tuple[str, ...]) -> Iterator[_Member]:
    """The files of an archive, checked; those of the parts are checked before the first one comes where that can be."""
    if zipfile.is_zipfile(archive):
        return _of_zip(archive, parts)
    if tarfile.is_tarfile(archive):
        return _of_tar(archive, parts)
    raise ValueError(f"{archive}: is no .zip and no .tar")


def _of_zip(archive: Path, parts: tuple[str, ...]) -> Iterator[_Member]:
    limits = _Limits(archive)
    with zipfile.ZipFile(archive) as opened:
        infos = []
        for info in opened.infolist():
            limits.add(info.filename, info.file_size)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 1 or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{archive}: {info.filename!r} is encrypted, a link or a device")
            if not info.is_dir() and any(info.filename == part or info.filename.startswith(f"{part}/") for part in parts):
                infos.append(info)
        limits.room(sum(info.file_size for info in infos))
        for info in infos:
            with opened.open(info) as content:
                yield _Member(name=info.filename, size=info.file_size, content=content)


def _of_tar(archive: Path, parts: tuple[str, ...]) -> Iterator[_Member]:
    """In its order: a packed tar is read from end to end. Links outside of the parts are left alone."""
    limits = _Limits(archive)
    with tarfile.open(archive, mode="r|*") as opened:
        for info in opened:
            limits.add(info.name, info.size)
            wanted = any(info.name == part or info.name.startswith(f"{part}/") for part in parts)
            if not wanted or info.isdir():
                continue
            content = opened.extractfile(info) if info.isreg() else None
            if content is None:
                raise ValueError(f"{archive}: {info.name!r} is a link or a device")
            limits.room(info.size)
            yield _Member(name=info.name, size=info.size, content=content)


class _Limits:
    """What an archive may hold: counted as its members come."""

    def __init__(self, archive: Path) -> None:
        self._archive, self._count, self._size = archive, 0, 0
        self._most = max(_ALWAYS_ALLOWED, MOST_RATIO * archive.stat().st_size)

    def add(self, name: str, size: int) -> None:
        """Count a member; raises ValueError where its name leads out of the archive, or there is too much."""
        pure = PurePosixPath(name)
        if not name or "\\" in name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"{self._archive}: {name!r} leads out of the archive")
        self._count, self._size = self._count + 1, self._size + size
        if self._count > MOST_MEMBERS or self._size > self._most:
            raise ValueError(
                f"{self._archive}: {self._count:,} members of {amount(self._size)} in an archive of "
                f"{amount(self._archive.stat().st_size)}; allowed are {MOST_MEMBERS:,} and {amount(self._most)}"
            )

    def room(self, size: int) -> None:
        """Raise ValueError where there is no room for some more bytes."""
        free = shutil.disk_usage(self._archive.parent).free
        if size > free:
            raise ValueError(f"{self._archive}: unpacks to {amount(size)}; free are {amount(free)} in {self._archive.parent}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
