"""From data sets to one manifest: read all records, check every image once, keep train and val apart.

Memory does not grow with the data: the records of each data set are written down as they are read (`ScratchRecords`), the
images stand in a table on disk (`Catalogue`), and then the records get their images' keys. What single readers hold, they say.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from perceptio_core.data.images import ImageFacts, inspect_image
from perceptio_core.data.manifest.held_out import BY_ID, BY_LOOK, read_held_out, reasons_to_leave_out
from perceptio_core.data.manifest.image_table import AMONG_VAL, Catalogue
from perceptio_core.data.manifest.manifest import QUARANTINE, RECORDS, ImageRow, write_images, write_quarantine, write_records
from perceptio_core.data.manifest.scratch_records import ScratchRecords
from perceptio_core.data.readers.kinds import read_dataset
from perceptio_core.data.records import Numbers, Record, Refused
from perceptio_core.data.rle import area
from perceptio_core.engine import Engine
from perceptio_core.files import stamp
from perceptio_core.jsonl import objects
from perceptio_core.params.sources import DatasetParams
from perceptio_core.progress import track

MAX_CHARACTERS = 32_768
"""Of all turns of a record: about the 8192 tokens that Sa2VA cuts a sample to; one far longer would exhaust the memory."""
OF_ITS_IMAGE = "its image is quarantined"
"""Why a record is left out whose image is."""
CHECKED_AT_ONCE = 256
"""Images that a worker looks at before it says what they are."""
_Kind = tuple[str, str, str]  # split, task and data set

DROPPED = {BY_ID: "held_out_by_id", BY_LOOK: "held_out_by_look", AMONG_VAL: "among_val"}
"""What the counts call the reasons for which records are left out; any other is "quarantined"."""


def collect(
    datasets: Sequence[DatasetParams],
    *,
    root: Path,
    work: Path,
    journals: Path,
    out: Path,
    max_pixels: int,
    workers: int,
    engine: Engine,
    held_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Read the data sets below `root` and write their manifest.

    An image that is also among the val images is no training image, whichever data set brings it; nor is one that is held
    out. Files that are copies of each other are one image. A record is refused with its image, or when a mask has another
    size than the image or is empty.

    Args:
        datasets: what to read, in this order; the first to name an image file gives it its key.
        root: the data root.
        work: folder for what is needed meanwhile.
        journals: folder of what is known of pictures by their content; lets a killed run go on where it stood, and a later one
            with other data sets or test images, but the same root and `max_pixels`, look at new pictures alone.
        out: folder of the manifest's three files.
        max_pixels: larger images are refused.
        workers: threads that look at test images.
        engine: checks all other images.
        held_out: where the test images are (`read_held_out`).

    Returns:
        Numbers: ``images_<split>``, ``<split>_<task>`` and ``source_<data set>`` (records) of what is kept; test images left
        out, ``held_out_by_id`` and ``held_out_by_look``; ``shared_files``, copies of others; ``quarantined``, lines; and
        ``data``: `Numbers` per split, task and data set.

    Raises:
        ValueError: a data set's own files are absent or malformed; names file, key and what is allowed.
    """
    # First, for a place that is wrong must not be found after hours of decoding.
    tests = read_held_out(
        held_out, root=root, max_pixels=max_pixels, workers=workers, journal=journals / "held_out.jsonl" if held_out else None
    )
    with (out / QUARANTINE).open("w", encoding="utf-8") as stream:
        refused = _Quarantine(stream, root=root)
        read: list[ScratchRecords] = []
        kept: Counter[_Kind] = Counter()
        dropped: dict[_Kind, Counter[str]] = {}
        for number, dataset in enumerate(datasets):
            before = refused.count
            path, named = work / f"records-{number:03d}.parquet", root / dataset.path
            found = read_dataset(dataset, root=root)
            some = ScratchRecords(path, found, dataset=named, limit=dataset.limit, refuse=refused.add)
            if some.count == 0:
                raise ValueError(f"{named}: no {dataset.split} records of kind {dataset.kind}")
            read.append(some)
            over = max(0, some.count - dataset.limit) if dataset.limit else 0
            why = dropped.setdefault((dataset.split, dataset.task, dataset.name), Counter())
            why.update({"over_limit": over, "quarantined": refused.count - before})

        catalogue = Catalogue(work / "images.sqlite")
        # Val first: where two data sets share a file, it is a val image.
        for number in sorted(range(len(datasets)), key=lambda number: datasets[number].split != "val"):
            catalogue.add(read[number].images())
        check_images(catalogue, root=root, journal=journals / "checked.jsonl", max_pixels=max_pixels, engine=engine)
        for row in tests.refused:
            refused.add(row)
        catalogue.leave_out(reasons_to_leave_out(catalogue.train_looks, tests))
        for row in catalogue.settle():
            refused.add(row)

        def records() -> Iterator[Record]:
            for record in chain.from_iterable(some.records() for some in read):
                kind = record.split, record.task, record.source
                image = catalogue.find(record.image)
                reason = image if isinstance(image, str) else _unfit(record, image)
                if isinstance(image, ImageRow) and reason is None:
                    catalogue.use(image.image_key)
                    kept[kind] += 1
                    yield replace(record, image_name=None, image_key=image.image_key)
                    continue
                dropped.setdefault(kind, Counter())[DROPPED.get(str(reason), "quarantined")] += 1
                told = OF_ITS_IMAGE if isinstance(image, str) else reason
                refused.add(Refused(file=f"{record.image}#{record.record_id}", reason=str(told)))

        images: Counter[str] = Counter()

        def used() -> Iterator[ImageRow]:
            for image in catalogue.used():
                images[image.split] += 1
                yield image

        write_records(out / RECORDS, records(), named=out)
        write_images(out, used())
        shared = catalogue.copies()
        catalogue.close()

    flat: Counter[str] = Counter({f"images_{split}": count for split, count in images.items()})
    data: dict[str, dict[str, dict[str, Numbers]]] = {}
    for split, task, name in sorted({*kept, *dropped}):
        why, count = dropped.get((split, task, name), Counter()), kept[split, task, name]
        numbers = Numbers(records=count, dropped={reason: number for reason, number in sorted(why.items()) if number})
        data.setdefault(split, {}).setdefault(task, {})[name] = numbers
        flat.update({f"{split}_{task}": count, f"source_{name}": count})
    held = {name: refused.reasons[reason] for reason, name in DROPPED.items() if reason in (BY_ID, BY_LOOK)}
    return {**flat, **held, "shared_files": shared, "quarantined": refused.count, "data": data}


class _Quarantine:
    """Writes quarantine rows and counts them; `reasons` counts those of test images that are held out.

    Where `root` lies is left out of them, so that the same data give the same bytes on every machine.
    """

    def __init__(self, stream: IO[str], *, root: Path) -> None:
        self._stream, self._root, self.count, self.reasons = stream, f"{root}/", 0, Counter[str]()

    def add(self, row: Refused) -> None:
        row = replace(row, file=row.file.replace(self._root, ""), reason=row.reason.replace(self._root, ""))
        self.count += write_quarantine(self._stream, [row])
        if row.reason in (BY_ID, BY_LOOK):
            self.reasons[row.reason] += 1


def _unfit(record: Record, image: ImageRow) -> str | None:
    """Why a record may not be used with its image."""
    characters = sum(len(text) for turn in record.turns for text in turn)
    if characters > MAX_CHARACTERS:
        return f"a text of {characters} characters; at most {MAX_CHARACTERS} are used"
    if record.split != image.split:
        return AMONG_VAL
    for mask in record.masks or ():
        if list(mask["size"]) != [image.height, image.width]:
            return f"a mask of size {mask['size']} for an image of [{image.height}, {image.width}]"
        if area(mask) == 0:
            return "a mask is empty"
    for point in record.points:
        if point.x >= image.width or point.y >= image.height:
            return f"point {point.letter} at ({point.x}, {point.y}) of an image of {image.width} x {image.height}"
    return None


def check_images(catalogue: Catalogue, *, root: Path, journal: Path, max_pixels: int, engine: Engine) -> None:
    """Look at every image of the table once, by an engine; what the journal has is not done again."""
    with journal.open("a+", encoding="utf-8") as stream:
        stream.seek(0)
        for _, row in objects(stream):
            if isinstance(row, str):  # the line that a killed run left half written
                continue
            with contextlib.suppress(KeyError, TypeError):
                if row["stamp"] == stamp(root / row["path"]):
                    catalogue.check(row["path"], row["reason"] if row["facts"] is None else ImageFacts(**row["facts"]))
    left = catalogue.count_unchecked()
    if not left:
        return
    units = (
        tuple(page[start : start + CHECKED_AT_ONCE])
        for page in catalogue.unchecked()
        for start in range(0, len(page), CHECKED_AT_ONCE)
    )
    with journal.open("a", encoding="utf-8") as stream:
        stream.write("\n")  # ends a half-written line
        checked = (row for _, rows in engine.map(partial(_checker, root, max_pixels), units) for row in rows)
        for path, seen, facts in track(checked, total=left, label="checking images", unit="images"):
            row = {
                "path": path,
                "stamp": seen,
                "facts": asdict(facts) if isinstance(facts, ImageFacts) else None,
                "reason": facts if isinstance(facts, str) else None,
            }
            stream.write(json.dumps(row) + "\n")
            catalogue.check(path, facts)


def _checker(root: Path, max_pixels: int) -> Callable[[Sequence[str]], list[tuple[str, list[int] | None, ImageFacts | str]]]:
    """What looks at some images by their paths, and gives the stamp of each, and what it is or why it cannot be read."""

    def check(path: str) -> ImageFacts | str:
        try:
            return inspect_image(root / path, max_pixels=max_pixels)
        except ValueError as error:
            return str(error).replace(f"{root / path}: ", "")

    # The stamp first: of a file that changes meanwhile, it is another the next time.
    return lambda paths: [(path, stamp(root / path), check(path)) for path in paths]
