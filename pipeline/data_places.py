"""Which files a profile reads, and where each is officially to be had."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from perceptio_core.data import coco, refer
from perceptio_core.data.grefer import REFERENCES
from perceptio_core.data.label_maps import ADE_CLASSES, ADE_PARTS
from perceptio_core.data.visual_genome import FOLDERS, IMAGES, REGIONS
from perceptio_core.evaluation.seed_bench import IMAGE_FOLDER as SEED_IMAGES
from perceptio_core.params import Profile
from perceptio_core.params.evaluate import BenchmarkParams
from perceptio_core.params.sources import DatasetParams

_VLMEVALKIT = "https://opencompass.openxlab.space/utils"
_REFER = "https://github.com/lichengunc/refer (refcoco.zip, refcoco+.zip, refcocog.zip)"
_LLAVA = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"
ORIGINS: Mapping[str, str] = {
    "train2014": "http://images.cocodataset.org/zips/train2014.zip",
    "train2017": "http://images.cocodataset.org/zips/train2017.zip",
    "refer": _REFER,
    "coco": "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    "llava": _LLAVA,
    "panoptic": "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip",
    "ade20k": "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    "vg": "https://homes.cs.washington.edu/~ranjay/visualgenome/api.html",
    "gcg": "https://huggingface.co/datasets/MBZUAI/GranD-f",
    "GranDf_HA_images/train": "https://github.com/mbzuai-oryx/groundingLMM (docs/datasets.md: GranDf_HA_images)",
    "aurora": "https://github.com/mahtabbigverdi/Aurora-perception (README: train_depth_annealing_data.json)",
    "gqa/images": "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",
    "ocr_vqa/images": "https://ocr-vqa.github.io",
    "textvqa/train_images": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
    "vg/VG_100K": "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
    "vg/VG_100K_2": "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
    "grefcoco": "https://github.com/henghuiding/gRefCOCO",
    "reasonseg": "https://github.com/dvlab-research/LISA",
    "hardblink": "https://github.com/mahtabbigverdi/Aurora-perception",
    "blink_depth": "https://huggingface.co/datasets/BLINK-Benchmark/BLINK",
    "mmbench": f"{_VLMEVALKIT}/benchmarks/MMBench/<name of the file>",
    "seedbench": "https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    "mme": "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (branch Evaluation)",
    "ai2d": f"{_VLMEVALKIT}/VLMEval/<name of the file>",
    "scienceqa": "https://github.com/lupantech/ScienceQA",
    **dict.fromkeys(("questions", "masks"), "the one who made it"),
}
_AURORA_PICTURES = (
    "https://ade20k.csail.mit.edu; those with circles are not published: AURORA's AiT/vae/add_marks_ade.ipynb draws them"
)
IMAGE_COUNTS: Mapping[str, int] = {"train2014": 82_783, "train2017": 118_287}
"""Published number of pictures in a folder of this name."""
EXPRESSIONS: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("refcoco", "unc"): {"val": 10_834, "testA": 5_657, "testB": 5_095},
    ("refcoco+", "unc"): {"val": 10_758, "testA": 5_726, "testB": 4_889},
    ("refcocog", "umd"): {"val": 4_896, "test": 9_602},
}
"""Published number of expressions of a split, by folder and the references' author."""
_LLAVA_MIX = "llava_v1_5_mix665k.json"
_PSG = "OpenPsg"
"""GranD-f on PSG names its pictures as COCO 2017 lays them out."""
_LLAVA_FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")


@dataclass(kw_only=True)
class Place:
    """A file or folder below the data root.

    Attributes:
        path: relative to the root.
        origin: where it is to be had.
        used_by: names of the data sets and benchmarks that read it.
        pictures: whether it is a folder of training pictures: the stages keep what they make of them.
    """

    path: str
    origin: str
    used_by: list[str] = field(default_factory=list)
    pictures: bool = False


def places(profile: Profile) -> list[Place]:
    """All places that the profile reads below its data root, each once, in the order in which it names them."""
    found: dict[str, Place] = {}
    for path, origin, user, pictures in _all(profile):
        place = found.setdefault(path, Place(path=path, origin=origin))
        if user not in place.used_by:
            place.used_by.append(user)
        place.pictures |= pictures
    for path in profile.sources.held_out:
        place = found.setdefault(path, Place(path=path, origin="the benchmark's own site"))
        place.used_by.append("held_out")
    return list(found.values())


def _all(profile: Profile) -> Iterator[tuple[str, str, str, bool]]:
    for dataset in profile.sources.datasets:
        for path, origin, pictures in _of_dataset(dataset):
            yield path, origin, dataset.name, pictures
    for benchmark in profile.evaluate.benchmarks:
        for path, origin in _of_benchmark(benchmark):
            yield path, origin, benchmark.label, False


def _of_dataset(dataset: DatasetParams) -> Iterator[tuple[str, str, bool]]:
    path = dataset.path
    if dataset.kind == "refer":
        yield from ((file, origin, False) for file, origin in _references(path, dataset.split_by))
        if dataset.descriptions is not None:
            yield dataset.descriptions, "the captioner that you choose", False
        yield _pictures(dataset.images or f"{path}/{refer.IMAGE_FOLDER}")
    elif dataset.kind == "coco":
        file = Path(path) if path.endswith(".json") else Path(path) / "instances.json"
        yield file.as_posix(), ORIGINS["coco"], False
        yield _pictures(dataset.images or (file.parent / coco.IMAGE_FOLDER).as_posix())
    elif dataset.kind == "grefer":
        yield from ((f"{path}/{name}", ORIGINS["grefcoco"], False) for name in (REFERENCES, "instances.json"))
        yield _pictures(dataset.images or f"{path}/{refer.IMAGE_FOLDER}")
    elif dataset.kind == "panoptic":
        beside = Path(path).parent
        yield from ((file, ORIGINS["panoptic"], False) for file in (path, Path(path).with_suffix("").as_posix()))
        yield _pictures(dataset.images or (beside / "images").as_posix())
    elif dataset.kind == "ade20k":
        part = ADE_PARTS[dataset.split]
        yield from ((f"{path}/{name}", ORIGINS["ade20k"], False) for name in (ADE_CLASSES, f"annotations/{part}"))
        yield f"{path}/images/{part}", ORIGINS["ade20k"], True
    elif dataset.kind == "vg":
        yield from ((f"{path}/{name}", ORIGINS["vg"], False) for name in (IMAGES, REGIONS))
        yield from (_pictures(f"{dataset.images or path}/{name}") for name in FOLDERS)
    elif dataset.kind in ("gcg", "questions"):
        yield path, ORIGINS[dataset.kind], False
        folder = dataset.images or Path(path).parent.as_posix()
        yield _pictures(f"{folder}/train2017" if Path(path).name.startswith(_PSG) else folder)
    elif dataset.kind == "aurora":
        yield path, ORIGINS["aurora"], False
        yield dataset.images or Path(path).parent.as_posix(), _AURORA_PICTURES, True
    else:
        yield path, ORIGINS["llava"], False
        if Path(path).name == _LLAVA_MIX:
            below = f"{dataset.images}/" if dataset.images else ""
            yield from (_pictures(f"{below}{folder}") for folder in _LLAVA_FOLDERS)
        elif dataset.images is not None:
            yield _pictures(dataset.images)


def _of_benchmark(benchmark: BenchmarkParams) -> Iterator[tuple[str, str]]:
    path, origin = benchmark.path, ORIGINS[benchmark.kind]
    match benchmark.kind:
        case "refer" | "grefcoco":
            yield from (
                _references(path, benchmark.split_by)
                if benchmark.kind == "refer"
                else (
                    (f"{path}/{REFERENCES}", origin),
                    (f"{path}/instances.json", origin),
                )
            )
            yield _pictures(benchmark.images or f"{path}/{refer.IMAGE_FOLDER}")[:2]
        case "hardblink":
            yield from ((f"{path}/{part}", origin) for part in ("questions", "answers", "images"))
        case "mme":
            yield from ((f"{path}/{part}", origin) for part in ("questions", "images"))
        case "seedbench" if path.endswith(".json"):
            yield path, origin
            yield f"{Path(path).parent.as_posix()}/{SEED_IMAGES}", origin
        case "scienceqa" if not path.endswith(".tsv"):
            yield from ((f"{path}/{part}", origin) for part in ("problems.json", "pid_splits.json", "images"))
        case _:
            yield path, origin


def _references(folder: str, split_by: str | None) -> Iterator[tuple[str, str]]:
    yield f"{folder}/refs({split_by or '*'}).p", ORIGINS["refer"]
    yield f"{folder}/instances.json", ORIGINS["refer"]


def _pictures(folder: str) -> tuple[str, str, bool]:
    known = next((name for name in ORIGINS if folder == name or folder.endswith(f"/{name}")), None)
    return folder, ORIGINS[known] if known else "the data set's own site", True
