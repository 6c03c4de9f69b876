"""Which files and folders a profile reads below its data root, and what of which archive lies there.

A place's member is a file or folder in its archive; "" stands for the fetched file itself, and ``outer.zip!/inner`` for what an
archive within the archive holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from perceptio_core.data.readers import coco, refer
from perceptio_core.data.readers.grefer import REFERENCES
from perceptio_core.data.readers.label_maps import ADE_CLASSES, ADE_PARTS
from perceptio_core.data.readers.visual_genome import FOLDERS, IMAGES, REGIONS
from perceptio_core.evaluation.benchmarks.mme_release import PACKED
from perceptio_core.evaluation.benchmarks.seed_bench import IMAGE_FOLDER as SEED_IMAGES
from perceptio_core.params.evaluate import BenchmarkParams
from perceptio_core.params.profile import Profile
from perceptio_core.params.sources import DatasetParams
from pipeline.data_archives import ARCHIVES, AURORA_COMMIT, Archive

IMAGE_COUNTS: Mapping[str, int] = {"train2014": 82_783, "train2017": 118_287}
"""Published number of pictures in a folder of this name."""
EXPRESSIONS: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("refcoco", "unc"): {"val": 10_834, "testA": 5_657, "testB": 5_095},
    ("refcoco+", "unc"): {"val": 10_758, "testA": 5_726, "testB": 4_889},
    ("refcocog", "umd"): {"val": 4_896, "test": 9_602},
}
"""Published number of expressions of a split, by folder and the references' author."""

YOURS = "yours"
_AUTHORS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
_PICTURES = {
    "train2014": ("train2014", "train2014"),
    "train2017": ("train2017", "train2017"),
    "GranDf_HA_images/train": ("grandf_images", ""),
    "gqa/images": ("gqa_images", "images"),
    "ocr_vqa/images": ("ocr_vqa_images", ""),
    "textvqa/train_images": ("textvqa_images", "train_images"),
    "VG_100K": ("vg_100k", "VG_100K"),
    "VG_100K_2": ("vg_100k_2", "VG_100K_2"),
}
"""Archive and member by the end of a picture folder's path."""
_LLAVA_FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
_PSG = "OpenPsg"
"""GranD-f on PSG names its pictures as COCO 2017 lays them out."""


@dataclass(kw_only=True)
class Place:
    """A file or folder below the data root.

    Attributes:
        path: relative to the root; with a ``*`` where a folder has one such file.
        archive: name of the archive that it comes from, a key of `ARCHIVES`.
        member: which part of it; a `*` of the path stands for the member's own name.
        used_by: names of the data sets and benchmarks that read it.
        pictures: whether it is a folder of training pictures: the stages keep what they make of them.
    """

    path: str
    archive: str
    member: str
    used_by: list[str] = field(default_factory=list)
    pictures: bool = False

    @property
    def source(self) -> Archive:
        """Where it is to be had."""
        return ARCHIVES[self.archive]


_Row = tuple[str, str, str, bool]  # path, archive, member, pictures


def places(profile: Profile) -> list[Place]:
    """All places that the profile reads below its data root, each once, in the order in which it names them."""
    found: dict[str, Place] = {}
    for user, (path, archive, member, pictures) in _all(profile):
        place = found.setdefault(path, Place(path=path, archive=archive, member=member))
        if user not in place.used_by:
            place.used_by.append(user)
        place.pictures |= pictures
    for held_out in profile.sources.held_out:
        known = [place for path, place in found.items() if _holds(path, held_out) or _holds(held_out, path)]
        for place in known or [found.setdefault(held_out, Place(path=held_out, archive=YOURS, member=""))]:
            place.used_by.append("held_out")
    return list(found.values())


def _holds(folder: str, path: str) -> bool:
    return path == folder or PurePosixPath(folder) in PurePosixPath(path).parents


def _all(profile: Profile) -> Iterator[tuple[str, _Row]]:
    for dataset in profile.sources.datasets:
        yield from ((dataset.name, row) for row in _of_dataset(dataset))
    for benchmark in profile.evaluate.benchmarks:
        yield from ((benchmark.label, row) for row in _of_benchmark(benchmark))


def _of_dataset(dataset: DatasetParams) -> Iterator[_Row]:
    path = dataset.path
    name = Path(path).name
    if dataset.kind == "refer":
        yield from _references(path, dataset.split_by)
        if dataset.descriptions is not None:
            yield dataset.descriptions, YOURS, "", False
        yield _pictures(dataset.images or f"{path}/{refer.IMAGE_FOLDER}")
    elif dataset.kind == "coco":
        file = Path(path) if path.endswith(".json") else Path(path) / "instances.json"
        member = file.name if file.name.startswith("instances_") else "instances_train2017.json"
        yield file.as_posix(), "coco_annotations", f"annotations/{member}", False
        yield _pictures(dataset.images or (file.parent / coco.IMAGE_FOLDER).as_posix(), otherwise="train2017")
    elif dataset.kind == "grefer":
        yield from _generalised(path)
        yield _pictures(dataset.images or f"{path}/{refer.IMAGE_FOLDER}")
    elif dataset.kind == "panoptic":
        stem = Path(path).stem
        yield path, "coco_panoptic", f"annotations/{name}", False
        yield Path(path).with_suffix("").as_posix(), "coco_panoptic", f"annotations/{stem}.zip!/{stem}", False
        yield _pictures(dataset.images or (Path(path).parent / "images").as_posix(), otherwise="train2017")
    elif dataset.kind == "ade20k":
        part = ADE_PARTS[dataset.split]
        for below in (ADE_CLASSES, f"annotations/{part}", f"images/{part}"):
            yield f"{path}/{below}", "ade20k", f"ADEChallengeData2016/{below}", below.startswith("images")
    elif dataset.kind == "vg":
        yield f"{path}/{IMAGES}", "vg_image_data", IMAGES, False
        yield f"{path}/{REGIONS}", "vg_regions", REGIONS, False
        yield from (_pictures(f"{dataset.images or path}/{folder}") for folder in FOLDERS)
    elif dataset.kind == "gcg":
        yield path, _published(name, "grandf", "grandf_psg"), "", False
        folder = dataset.images or Path(path).parent.as_posix()
        yield _pictures(f"{folder}/train2017" if name.startswith(_PSG) else folder)
    elif dataset.kind == "questions":
        yield path, YOURS, "", False
        yield _pictures(dataset.images or Path(path).parent.as_posix())
    elif dataset.kind == "aurora":
        yield path, "aurora", "", False
        yield dataset.images or Path(path).parent.as_posix(), "aurora_images", "", True
    else:
        yield path, _published(name, "llava"), "", False
        if name == ARCHIVES["llava"].file:
            below = f"{dataset.images}/" if dataset.images else ""
            yield from (_pictures(f"{below}{folder}") for folder in _LLAVA_FOLDERS)
        elif dataset.images is not None:
            yield _pictures(dataset.images)


def _of_benchmark(benchmark: BenchmarkParams) -> Iterator[_Row]:
    path, kind = benchmark.path, benchmark.kind
    name = Path(path).name
    match kind:
        case "refer" | "grefcoco":
            yield from _references(path, benchmark.split_by) if kind == "refer" else _generalised(path)
            folder, archive, member, _ = _pictures(benchmark.images or f"{path}/{refer.IMAGE_FOLDER}")
            yield folder, archive, member, False
        case "hardblink":
            below = f"Aurora-perception-{AURORA_COMMIT}/Data/evals/hardblink"
            yield from (
                (f"{path}/{part}", "hardblink", f"{below}/{part}", False) for part in ("questions", "answers", "images")
            )
        case "mme":
            yield path, "mme", PACKED, False
        case "seedbench" if name.endswith(".json"):
            yield path, "seedbench", "", False
            yield f"{Path(path).parent.as_posix()}/{SEED_IMAGES}", "seedbench_images", SEED_IMAGES, False
        case "scienceqa" if not name.endswith(".tsv"):
            split = benchmark.split or "test"
            yield f"{path}/problems.json", "scienceqa_problems", "", False
            yield f"{path}/pid_splits.json", "scienceqa_splits", "", False
            yield f"{path}/images/{split}", f"scienceqa_{split}", split, False
        case "blink_depth":
            yield path, "blink", "", False
        case "reasonseg":
            yield path, "reasonseg", "", False
        case _:
            yield path, Path(path).stem if Path(path).stem in ARCHIVES else YOURS, "", False


def _references(folder: str, split_by: str | None) -> Iterator[_Row]:
    name = Path(folder).name
    archive = name if name in _AUTHORS else YOURS
    file = f"refs({split_by or _AUTHORS.get(name, '*')}).p"
    yield f"{folder}/refs({split_by or '*'}).p", archive, f"{name}/{file}", False
    yield f"{folder}/instances.json", archive, f"{name}/instances.json", False


def _generalised(folder: str) -> Iterator[_Row]:
    yield f"{folder}/{REFERENCES}", "grefcoco", "", False
    yield f"{folder}/instances.json", "grefcoco_instances", "", False


def _pictures(folder: str, *, otherwise: str = YOURS) -> _Row:
    """A folder of training pictures, told by the end of its path; `otherwise` names what it holds under any other."""
    end = next((end for end in _PICTURES if folder == end or folder.endswith(f"/{end}")), otherwise)
    if folder.endswith(refer.IMAGE_FOLDER):
        end = "train2014"
    archive, member = _PICTURES.get(end, (YOURS, ""))
    return folder, archive, member, True


def _published(file: str, *archives: str) -> str:
    """The archive that is the published file of this name, or the user's own."""
    return next((name for name in archives if ARCHIVES[name].file == file), YOURS)
