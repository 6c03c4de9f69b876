"""Shards written and read: ours, webdataset's, litData's and Mosaic's, and Pillow without any."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.comparing import Figure, Program, compare
from benchmarks.peers.found import Found

PEERS = ("webdataset", "litdata", "mosaicml-streaming")
_SCRIPTS = {
    "perceptio": "perceptio_shards.py",
    "webdataset": "webdataset_shards.py",
    "litdata": "litdata_shards.py",
    "mosaicml-streaming": "mds_shards.py",
    "pillow": "pillow_shards.py",
}


def shards(folder: Path, *, pictures: Path, count: int, repeats: int) -> Iterator[Found]:
    """Written by one process; read shuffled and decoded by one, and by two workers beside it.

    Args:
        folder: for the shards; each is written anew, and the last ones are read.
        pictures: folder of JPEG photographs.
        count: entries.
        repeats: runs of each.
    """
    places = {peer: folder / peer for peer in ("perceptio", *PEERS)}

    def writer(peer: str) -> Program:
        def clear() -> None:
            shutil.rmtree(places[peer], ignore_errors=True)

        return Program(peer, _SCRIPTS[peer], ("write", str(places[peer]), str(pictures), str(count)), before=clear)

    def rate(what: str) -> list[Figure]:
        return [Figure(what, "entries/s", lambda printed: count / printed["seconds"])]

    yield from compare(
        rate(f"shards of {count} photographs written, one process"),
        ours=writer("perceptio"),
        peers=[writer(peer) for peer in PEERS],
        repeats=repeats,
    )
    for workers in (0, 2):

        def reader(peer: str, workers: int = workers) -> Program:
            place = places.get(peer, pictures)
            return Program(peer, _SCRIPTS[peer], ("read", str(place), str(workers), str(count)))

        yield from compare(
            rate(f"shards read shuffled and decoded, {f'{workers} workers' if workers else 'one process'}"),
            ours=reader("perceptio"),
            peers=[reader(peer) for peer in (*PEERS, "pillow")],
            repeats=repeats,
        )
