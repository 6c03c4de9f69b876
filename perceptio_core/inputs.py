"""Every file that the stages will read of the user's data, opened before the first of them starts.

Seconds are to do: tables of questions are read whole by the benchmarks' own readers; of what is long (COCO's instances, the
conversations, a folder of pictures) the beginning and the end. `Finding.note` says what was not read. The readers of the
stages remain the judges of every row; here it is found whether they will have something to read.
"""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from perceptio_core.data.images import is_picture, open_image
from perceptio_core.data.readers.coco import IMAGE_FOLDER as COCO_IMAGES
from perceptio_core.data.readers.grefer import REFERENCES
from perceptio_core.data.readers.json_heads import ends_whole, first_rows
from perceptio_core.data.readers.json_rows import list_rows
from perceptio_core.data.readers.kinds import read_dataset
from perceptio_core.data.readers.refer import IMAGE_FOLDER, read_descriptions, read_plain_pickle
from perceptio_core.data.records import Record, spread
from perceptio_core.evaluation.benchmarks.load import load_benchmark
from perceptio_core.files import files_below
from perceptio_core.params.evaluate import BenchmarkParams
from perceptio_core.params.profile import Profile
from perceptio_core.params.sources import DatasetParams

_SECONDS = 3.0
"""For one data set whose records are read one after the other."""
_AT_LEAST = 20  # records, also where they take longer
_PICTURES = 5  # looked for, of each folder
_ROWS = 5
_POINTER = 64  # a shorter text in a table's column image names another row


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What opening one input has shown.

    Attributes:
        what: the key of the profile and the entry, such as ``sources.datasets: llava``.
        fault: why the stage that reads it would stop or read nothing; None where it would not.
        note: how far it was read, and what is less than whole.
        pictures: folders of training pictures, as far as they were met.
    """

    what: str
    fault: str | None
    note: str = ""
    pictures: frozenset[Path] = frozenset()


def look_at_inputs(profile: Profile, *, root: Path, stages: Sequence[str] = ("sources", "evaluate")) -> Iterator[Finding]:
    """Open what the profile names below its data root; every input gives one finding.

    Args:
        profile: what is read.
        root: the data root.
        stages: sources for data sets and held-out places, evaluate for benchmarks.
    """
    references = cache(_references)
    if "sources" in stages:
        for dataset in profile.sources.datasets:
            what = f"sources.datasets: {dataset.name} ({dataset.split})"
            yield _found(what, partial(_look_at_dataset, dataset, root, references))
        for place in profile.sources.held_out:
            yield _found(f"sources.held_out: {place}", partial(_look_at_held_out, root / place))
    if "evaluate" in stages:
        read: dict[str, Finding] = {}
        for entry in profile.evaluate.benchmarks:
            same = entry.model_copy(update=dict.fromkeys(("name", "codes", "depth", "segment"), None)).model_dump_json(
                include={"kind", "path", "split", "split_by", "images"}
            )
            if same not in read:  # a control asks the same questions in another way
                what = f"evaluate.benchmarks: {entry.label}"
                read[same] = _found(what, partial(_look_at_benchmark, entry, root, references))
                yield read[same]


def _found(what: str, look: Callable[[], _Look]) -> Finding:
    try:
        notes, folders = look()
        return Finding(what=what, fault=None, note="; ".join(filter(None, notes)), pictures=frozenset(folders))
    except (ValueError, OSError) as error:
        return Finding(what=what, fault=str(error))


_Look = tuple[list[str], list[Path]]
"""What there is to say, and the folders of pictures."""


Counts = Callable[[Path, str | None], Counter[str]]


def _look_at_dataset(dataset: DatasetParams, root: Path, references: Counts) -> _Look:
    path = root / dataset.path
    if dataset.kind == "refer":
        bad: list[str] = []
        if dataset.descriptions is not None:
            read_descriptions(root / dataset.descriptions, refuse=bad.append)
        notes, folders = _look_at_refer(
            path, dataset.split, dataset.split_by, _below(root, dataset.images, path / IMAGE_FOLDER), references
        )
        return notes + ([f"{len(bad):,} descriptions refused, such as {bad[0]}"] if bad else []), folders
    if dataset.kind == "grefer":
        return _look_at_grefer(path, dataset.split, _below(root, dataset.images, path / IMAGE_FOLDER))
    if dataset.kind == "coco":
        file = path if path.suffix == ".json" else path / "instances.json"
        return _look_at_instances(file, _below(root, dataset.images, file.parent / COCO_IMAGES))
    if dataset.kind == "panoptic":
        return _look_at_panoptic(path, _below(root, dataset.images, path.parent / "images"))
    return _look_at_records(dataset, root)


def _look_at_records(dataset: DatasetParams, root: Path) -> _Look:
    """Read records for a while, and look for the pictures of the first ones of each folder."""
    folders: dict[str, list[str]] = {}
    records, refused, reason, whole = 0, 0, "", True
    end = time.monotonic() + _SECONDS
    for row in read_dataset(dataset, root=root):
        if isinstance(row, Record):
            records += 1
            some = folders.setdefault("/".join(PurePosixPath(row.image).parts[:-1]), [])
            if len(some) < _PICTURES and row.image not in some:
                some.append(row.image)
        else:
            refused, reason = refused + 1, reason or f"{row.file}: {row.reason}"
        if time.monotonic() > end and records + refused >= _AT_LEAST:
            whole = False
            break
    if not whole and (root / dataset.path).suffix == ".json":
        ends_whole(root / dataset.path)
    if not records:
        raise ValueError(
            f"{root / dataset.path}: none of its {refused:,} rows can be used; the first: {reason or 'there is none'}"
        )
    notes = [f"{records:,} records{'' if whole else f' in {_SECONDS:.0f} s, not read to the end'}"]
    notes += [f"{refused:,} rows refused, such as {reason}"] if refused else []
    notes += [_look_at_pictures(root / folder, [root / image for image in some]) for folder, some in sorted(folders.items())]
    return notes, [root / folder for folder in folders]


def _look_at_pictures(folder: Path, files: Sequence[Path]) -> str:
    """Nothing, or how many of some pictures of a folder are absent; raises ValueError where none can be opened."""
    present = [file for file in files if file.is_file()]
    if not present:
        raise ValueError(f"{folder}: none of the {len(files)} pictures looked for is there, such as {files[0].name}")
    if not any(map(is_picture, present)):
        raise ValueError(f"{present[0]}: is no picture that can be read")
    absent = len(files) - len(present)
    return f"{absent} of {len(files)} pictures looked for in {folder} are absent" if absent else ""


def _references(folder: Path, split_by: str | None) -> Counter[str]:
    """Expressions per split of REFER's references, of the form that the reader wants."""
    files = sorted(folder.glob("refs(*).p"))
    if split_by is not None:
        files = [folder / f"refs({split_by}).p"]
        if not files[0].is_file():
            raise ValueError(f"{files[0]}: absent")
    if len(files) != 1:
        raise ValueError(f"{folder}: expected one refs(*).p or a split_by, found {[file.name for file in files]}")
    counts = Counter[str]()
    try:
        for ref in read_plain_pickle(files[0]):
            counts[ref["split"]] += len(ref["sentences"])
            _ = ref["ann_id"], ref["image_id"], ref["ref_id"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{files[0]}: not REFER's references: {type(error).__name__}: {error}") from error
    return counts


def _look_at_refer(folder: Path, split: str, split_by: str | None, images: Path, references: Counts) -> _Look:
    counts = references(folder, split_by)
    if not counts[split]:
        raise ValueError(f"{folder}: no expressions in split {split!r}; it has {sorted(counts)}")
    notes, folders = _look_at_instances(folder / "instances.json", images)
    return [f"{counts[split]:,} expressions", *notes], folders


def _look_at_grefer(folder: Path, split: str, images: Path) -> _Look:
    counts = Counter(str(ref.get("split")) for ref in list_rows(folder / REFERENCES, of="references") if isinstance(ref, dict))
    if not counts[split]:
        raise ValueError(f"{folder / REFERENCES}: no references in split {split!r}; it has {sorted(counts)}")
    notes, folders = _look_at_instances(folder / "instances.json", images)
    return [f"{counts[split]:,} references", *notes], folders


def _look_at_instances(file: Path, images: Path) -> _Look:
    keys = {
        "images": ("id", "height", "width", "file_name"),
        "annotations": ("id", "image_id", "segmentation"),
        "categories": ("id", "name"),
    }
    rows = _heads(file, keys)
    note = _look_at_pictures(images, [images / str(row["file_name"]) for row in rows["images"]])
    return [f"{file.name} not read to the end", note], [images]


def _look_at_panoptic(file: Path, images: Path) -> _Look:
    rows = _heads(
        file,
        {
            "images": ("id", "file_name"),
            "categories": ("id", "name"),
            "annotations": ("image_id", "file_name", "segments_info"),
        },
    )
    labels = file.with_suffix("")
    notes = [
        f"{file.name} not read to the end",
        _look_at_pictures(labels, [labels / str(row["file_name"]) for row in rows["annotations"]]),
        _look_at_pictures(images, [images / str(row["file_name"]) for row in rows["images"]]),
    ]
    return notes, [images]


def _heads(file: Path, keys: dict[str, tuple[str, ...]]) -> dict[str, list[dict[str, Any]]]:
    """The first rows of lists of objects; raises ValueError where there is none or one lacks a field."""
    found = {}
    for key, fields in keys.items():
        rows = first_rows(file, key, count=_ROWS)
        if not rows:
            raise ValueError(f"{file}: {key} is empty")
        for row in rows:
            if not isinstance(row, dict) or (lacks := [name for name in fields if name not in row]):
                raise ValueError(f"{file}: {key}: a row lacks {', '.join(lacks) if isinstance(row, dict) else 'all fields'}")
        found[key] = rows
    return found


def _look_at_benchmark(entry: BenchmarkParams, root: Path, references: Counts) -> _Look:
    path = root / entry.path
    images = _below(root, entry.images, path / IMAGE_FOLDER)
    if entry.kind == "refer":
        return _look_at_refer(path, str(entry.split), entry.split_by, images, references)
    if entry.kind == "grefcoco":
        return _look_at_grefer(path, str(entry.split), images)
    few = {"limit": _PICTURES * 4} if entry.kind == "reasonseg" else {}  # it paints a mask for each
    items = load_benchmark(entry.model_copy(update=few), root=root).items
    some = [item.image for item in spread(items, _PICTURES * 4)]
    for content in [image for image in some if isinstance(image, bytes)][:1]:
        open_image(content)
    files = [Path(image) for image in some if isinstance(image, Path)]
    note = _look_at_pictures(files[0].parent, files) if files else ""
    return [f"{len(items):,} questions", note], []


def _look_at_held_out(path: Path) -> _Look:
    if not path.exists():
        raise ValueError(f"{path}: absent")
    if path.is_dir():
        _look_at_folder(path)
    elif path.suffix == ".p":
        counts = _references(path.parent, path.stem.removeprefix("refs(").removesuffix(")"))
        _heads(path.parent / "instances.json", {"images": ("id", "file_name")})
        if not any(count for split, count in counts.items() if split != "train"):
            raise ValueError(f"{path}: has the split train alone: nothing to hold out")
    elif path.suffix == ".parquet":
        _look_at_parquet(path)
    elif path.suffix == ".tsv":
        _look_at_tsv(path)
    else:
        raise ValueError(f"{path}: allowed are folders, .tsv, .parquet and REFER's refs(*).p")
    return [], []


def _look_at_folder(folder: Path) -> None:
    """Raises ValueError where no file of a folder is a picture or a table of pictures."""
    looked = 0
    for file in files_below(folder):
        if file.suffix == ".parquet":
            return _look_at_parquet(file)
        looked += 1
        if is_picture(file):
            return None
    raise ValueError(f"{folder}: none of its {looked:,} files is a picture")


def _look_at_parquet(path: Path) -> None:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error
    kinds = [column.type for column in schema]
    if not any(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 for kind in kinds):
        raise ValueError(f"{path}: has no column of pictures; it has {', '.join(schema.names)}")


def _look_at_tsv(path: Path) -> None:
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        if "image" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: has no column image; it has {', '.join(map(str, reader.fieldnames or ()))}")
        if not any(len(row["image"] or "") > _POINTER for row in islice(reader, 100)):
            raise ValueError(f"{path}: none of its first 100 rows holds a picture")


def _below(root: Path, folder: str | None, usual: Path) -> Path:
    return usual if folder is None else root / folder
