"""From data sets to one manifest: read all records, check every image once, keep train and val apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from perceptio_core.data.coco import coco_records
from perceptio_core.data.gcg import gcg_records
from perceptio_core.data.grefer import grefer_records
from perceptio_core.data.held_out import BY_ID, BY_LOOK, read_held_out, reasons_to_leave_out
from perceptio_core.data.images import ImageFacts, inspect_image
from perceptio_core.data.label_maps import ade_records, panoptic_records
from perceptio_core.data.llava import llava_records
from perceptio_core.data.manifest import ImageRow, RecordRow
from perceptio_core.data.questions import question_records
from perceptio_core.data.records import Record, Refused, spread
from perceptio_core.data.refer import refer_records
from perceptio_core.data.rle import area
from perceptio_core.data.visual_genome import region_records
from perceptio_core.params.sources import DatasetParams
from perceptio_core.progress import track

MAX_CHARACTERS = 32_768
"""Of all turns of a record: about the 8192 tokens that Sa2VA cuts a sample to; one far longer would exhaust the memory."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The rows of a manifest."""

    images: list[ImageRow]
    records: list[RecordRow]
    quarantine: list[Refused]
    shared: int
    """Image files that are copies of another one: one image stands for all of them."""

    def counts(self) -> dict[str, int]:
        """Number of images, records per split and task, records per data set, copies, test images left out, and refusals."""
        tasks = Counter(f"{record.split}_{record.task}" for record in self.records)
        sources = Counter(f"source_{record.source}" for record in self.records)
        images = Counter(f"images_{image.split}" for image in self.images)
        reasons = Counter(row.reason for row in self.quarantine)
        held_out = {"held_out_by_id": reasons[BY_ID], "held_out_by_look": reasons[BY_LOOK]}
        return {**images, **tasks, **sources, **held_out, "shared_files": self.shared, "quarantined": len(self.quarantine)}


def collect(
    datasets: Sequence[DatasetParams],
    *,
    root: Path,
    journal: Path,
    max_pixels: int,
    workers: int,
    held_out: Sequence[str] = (),
) -> Collected:
    """Read the data sets below `root`.

    An image whose content is also among the val images is no training image, whichever data set brings it; nor is one that
    is held out. Files of the same content are one image. A record is refused with its image, or when a mask has another size
    than the image or is empty.

    Args:
        datasets: what to read, in this order; the first to name an image file gives it its key.
        root: the data root.
        journal: file that remembers checked images, so that a killed run goes on where it stood.
        max_pixels: larger images are refused.
        workers: threads that check images.
        held_out: where the test images are (`read_held_out`).

    Raises:
        ValueError: a data set's own files are absent or malformed; names file, key and what is allowed.
    """
    records: list[Record] = []
    quarantine: list[Refused] = []
    for dataset in datasets:
        found, refused = read_dataset(dataset, root=root)
        if not found:
            raise ValueError(f"{root / dataset.path}: no {dataset.split} records of kind {dataset.kind}")
        records += spread(found, dataset.limit)
        quarantine += refused

    # Val first: where two data sets share a file, it is a val image.
    owners: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: record.split != "val"):
        owners.setdefault(record.image, record)
    checked = dict(_checked(sorted(owners), root=root, journal=journal, max_pixels=max_pixels, workers=workers))
    val_contents = {
        facts.sha256 for path, facts in checked.items() if isinstance(facts, ImageFacts) and owners[path].split == "val"
    }
    train_looks = {
        path: bytes.fromhex(facts.look)
        for path, facts in checked.items()
        if isinstance(facts, ImageFacts) and owners[path].split == "train"
    }
    left_out = _left_out(train_looks, held_out, root=root, max_pixels=max_pixels, quarantine=quarantine)

    images: dict[str, ImageRow] = {}
    first: dict[str, ImageRow] = {}  # by content
    keys: set[str] = set()
    for path, record in sorted(owners.items()):
        facts = checked[path]
        if isinstance(facts, str):
            quarantine.append(Refused(file=path, reason=facts))
        elif record.split == "train" and facts.sha256 in val_contents:
            quarantine.append(Refused(file=path, reason="the same image is among the val images"))
        elif path in left_out:
            quarantine.append(Refused(file=path, reason=left_out[path]))
        elif facts.sha256 in first:
            images[path] = first[facts.sha256]
        else:
            row = ImageRow(
                image_key=_key(record, path, keys),
                path=path,
                split=record.split,
                width=facts.width,
                height=facts.height,
                sha256=facts.sha256,
            )
            keys.add(row.image_key)
            images[path] = first[facts.sha256] = row
    rows: list[RecordRow] = []
    for record in records:
        image = images.get(record.image)
        reason = "its image is quarantined" if image is None else _unfit(record, image)
        if reason is not None or image is None:
            quarantine.append(Refused(file=f"{record.image}#{record.record_id}", reason=str(reason)))
        else:
            rows.append(RecordRow.of(record, image_key=image.image_key))
    used = {row.image_key for row in rows}
    kept = sorted((image for image in first.values() if image.image_key in used), key=lambda image: image.image_key)
    return Collected(images=kept, records=rows, quarantine=quarantine, shared=len(images) - len(first))


def read_dataset(dataset: DatasetParams, *, root: Path) -> tuple[list[Record], list[Refused]]:
    """The records of one data set, by its kind.

    Raises:
        ValueError: its files are absent or malformed.
    """
    path = root / dataset.path
    if dataset.kind == "refer":
        records = refer_records(
            path, source=dataset.name, split=dataset.split, split_by=dataset.split_by, root=root, images=dataset.images
        )
        return records, []
    if dataset.kind == "ade20k":
        return ade_records(path, source=dataset.name, split=dataset.split, root=root)
    if dataset.kind in ("coco", "panoptic", "vg"):
        return {"coco": coco_records, "panoptic": panoptic_records, "vg": region_records}[dataset.kind](
            path,
            source=dataset.name,
            split=dataset.split,
            root=root,
            images=dataset.images,
            max_objects=dataset.max_objects,
        )
    read = {"grefer": grefer_records, "gcg": gcg_records, "llava": llava_records, "questions": question_records}[dataset.kind]
    return read(path, source=dataset.name, split=dataset.split, root=root, images=dataset.images)


def _left_out(
    looks: Mapping[str, bytes], held_out: Sequence[str], *, root: Path, max_pixels: int, quarantine: list[Refused]
) -> dict[str, str]:
    """Reason by path of the images that are held out; test images that cannot be read go to the quarantine, as a warning."""
    if not held_out:
        return {}
    tests = read_held_out(held_out, root=root, max_pixels=max_pixels)
    quarantine += [
        Refused(file=name, reason="a test image that cannot be read: kept out by its id at most") for name in tests.unreadable
    ]
    return reasons_to_leave_out(looks, tests)


def _unfit(record: Record, image: ImageRow) -> str | None:
    """Why a record may not be used with its image."""
    characters = sum(len(text) for turn in record.turns for text in turn)
    if characters > MAX_CHARACTERS:
        return f"a text of {characters} characters; at most {MAX_CHARACTERS} are used"
    if record.split != image.split:
        return "the same image is among the val images"
    for mask in record.masks or ():
        if list(mask["size"]) != [image.height, image.width]:
            return f"a mask of size {mask['size']} for an image of [{image.height}, {image.width}]"
        if area(mask) == 0:
            return "a mask is empty"
    return None


def _key(record: Record, path: str, taken: set[str]) -> str:
    """``<data set>/<name>`` in letters, digits, ``_``, ``-`` and ``/`` (tar members end their key at the first dot)."""
    key = f"{record.source}/{re.sub(r'[^A-Za-z0-9_/-]', '_', record.image_name)}"
    # The depth shards write "/" as "__", so a key must differ from the others in that form too.
    if any(part in ("", ".", "..") for part in key.split("/")) or "__" in key or key in taken:
        key = f"{record.source}/{sha256(path.encode()).hexdigest()[:24]}"
    return key


def _checked(
    paths: Sequence[str], *, root: Path, journal: Path, max_pixels: int, workers: int
) -> Iterator[tuple[str, ImageFacts | str]]:
    """(path, facts or reason of refusal) for every image; what the journal has is not done again."""
    known: dict[str, ImageFacts | str] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []:
        try:
            row = json.loads(line)
            if row["stamp"] == _stamp(root / row["path"]):
                known[row["path"]] = row["reason"] if row["facts"] is None else ImageFacts(**row["facts"])
        except (ValueError, KeyError, TypeError):  # the line that a killed run left half written
            continue

    def check(path: str) -> tuple[str, ImageFacts | str]:
        try:
            return path, inspect_image(root / path, max_pixels=max_pixels)
        except ValueError as error:
            return path, str(error).replace(f"{root / path}: ", "")

    yield from ((path, known[path]) for path in paths if path in known)
    left = [path for path in paths if path not in known]
    if not left:
        return
    with journal.open("a", encoding="utf-8") as stream, ThreadPoolExecutor(workers) as pool:
        stream.write("\n")  # ends a half-written line
        for path, facts in track(pool.map(check, left), total=len(left), label="checking images", unit="images"):
            row = {
                "path": path,
                "stamp": _stamp(root / path),
                "facts": asdict(facts) if isinstance(facts, ImageFacts) else None,
                "reason": facts if isinstance(facts, str) else None,
            }
            stream.write(json.dumps(row) + "\n")
            yield path, facts


def _stamp(path: Path) -> list[int] | None:
    """What changes when a file changes."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
