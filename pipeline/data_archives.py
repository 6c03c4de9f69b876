"""Where each data set and benchmark is to be had: the one table of addresses, sizes, checksums, licences and steps by hand.

An address is the makers' own; where theirs has been dead for years, the same bytes in an archive of the web follow it. Sizes
and checksums are as others have published them (`known_from`); None is "not known to us". A licence is named as far as it is
known to us: what counts is the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perceptio_core.evaluation.benchmarks.official_files import MD5


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What to accept, and the makers' page that says it."""

    name: str
    page: str


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a data set on the Hugging Face hub; the commit is pinned where one is known to us."""

    repo: str
    file: str
    revision: str = "main"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file that is fetched as a whole, or a step that only the user can do.

    Attributes:
        licence: to be accepted before it is fetched.
        urls: addresses of the same bytes, tried in this order.
        hub: in their place, a file of the hub.
        step: in the place of both, what is to be done by hand.
        size: bytes.
        digest: "md5:..." or "sha256:..."; the hub tells its own.
        known_from: where size and digest were published.
    """

    licence: Licence
    urls: tuple[str, ...] = ()
    hub: HubFile | None = None
    step: str | None = None
    size: int | None = None
    digest: str | None = None
    known_from: str = ""

    @property
    def origin(self) -> str:
        """Where it is to be had, in a line."""
        if self.hub is not None:
            return f"https://huggingface.co/datasets/{self.hub.repo} ({self.hub.file})"
        return self.step or self.urls[0]

    @property
    def file(self) -> str:
        """Name of the file that is fetched."""
        return (self.hub.file if self.hub is not None else self.urls[0]).rpartition("/")[2]


_COCO = Licence(name="COCO: annotations CC BY 4.0, pictures under Flickr's terms", page="https://cocodataset.org/#termsofuse")
_REFER = Licence(name="REFER: none stated for the annotations", page="https://github.com/lichengunc/refer")
_VG = Licence(name="Visual Genome: CC BY 4.0", page="https://homes.cs.washington.edu/~ranjay/visualgenome/about.html")
_GQA = Licence(name="GQA: not known to us; its pictures are Visual Genome's", page="https://cs.stanford.edu/people/dorarad/gqa")
_TEXTVQA = Licence(name="TextVQA: CC BY 4.0", page="https://textvqa.org/dataset")
_ADE = Licence(name="ADE20K: research and education only", page="https://ade20k.csail.mit.edu/terms/")
_LLAVA = Licence(
    name="LLaVA-Instruct: CC BY 4.0, and OpenAI's terms of use",
    page="https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
)
_GRANDF = Licence(name="GranD-f: not known to us", page="https://huggingface.co/datasets/MBZUAI/GranD-f")
_AURORA = Licence(name="AURORA, HardBLINK: none stated", page="https://github.com/mahtabbigverdi/Aurora-perception")
_GREFCOCO = Licence(name="gRefCOCO: not known to us", page="https://github.com/henghuiding/gRefCOCO")
_BLINK = Licence(name="BLINK: Apache-2.0", page="https://huggingface.co/datasets/BLINK-Benchmark/BLINK")
_SEED = Licence(name="SEED-Bench: CC BY-NC 4.0", page="https://huggingface.co/datasets/AILab-CVC/SEED-Bench")
_MMBENCH = Licence(name="MMBench: Apache-2.0", page="https://github.com/open-compass/MMBench")
_AI2D = Licence(name="AI2D: not known to us", page="https://prior.allenai.org/projects/diagram-understanding")
_SCIENCEQA = Licence(name="ScienceQA: CC BY-NC-SA 4.0", page="https://github.com/lupantech/ScienceQA")
_MME = Licence(
    name="MME: academic research only",
    page="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
)
_OTHERS = Licence(name="the makers' own", page="")

_REFER_SITE = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
_ARCHIVED = "https://web.archive.org/web/{}id_/" + _REFER_SITE
_VG_FILES = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
_VG_IMAGES = "https://cs.stanford.edu/people/rak248/VG_100K_2"
_SCIENCEQA_TEXTS = "https://raw.githubusercontent.com/lupantech/ScienceQA/main/data/scienceqa"
_SCIENCEQA_IMAGES = "https://scienceqa.s3.us-west-1.amazonaws.com/images"
AURORA_COMMIT = "a3da45f56ae17ab5259ddbdb433ceaea9e1eab09"
_DRIVE = "Google Drive hands out no file without a page between: pip install gdown, then "
_MIRRORS = "lists of downloads in several public repositories"


def _refer(name: str, *, taken: str, size: int, sha256: str) -> Archive:
    # lichengunc/refer#14: the makers' server has been down since 2022, and the archived copy is what everyone fetches.
    urls = (f"{_REFER_SITE}/{name}.zip", f"{_ARCHIVED.format(taken)}/{name}.zip")
    return Archive(urls=urls, licence=_REFER, size=size, digest=f"sha256:{sha256}", known_from="users of the archived copies")


def _table(name: str, md5: str) -> Archive:
    folder, licence = {
        "MMBench": ("benchmarks/MMBench", _MMBENCH),
        "SEEDBench": ("benchmarks/SEEDBench", _SEED),
        "ScienceQA": ("benchmarks/ScienceQA", _SCIENCEQA),
        "AI2D": ("VLMEval", _AI2D),
    }[name.partition("_")[0]]
    url = f"https://opencompass.openxlab.space/utils/{folder}/{name}.tsv"
    return Archive(urls=(url,), licence=licence, digest=f"md5:{md5}", known_from="VLMEvalKit")


def _hub(repo: str, file: str, licence: Licence) -> Archive:
    return Archive(hub=HubFile(repo=repo, file=file), licence=licence)


ARCHIVES: Mapping[str, Archive] = {
    "train2014": Archive(
        urls=("http://images.cocodataset.org/zips/train2014.zip",),
        licence=_COCO,
        size=13_510_573_713,
        digest="md5:0da8c0bd3d6becc4dcb32757491aca88",
        known_from="LAVIS; its size: wget's logs",
    ),
    "train2017": Archive(
        urls=("http://images.cocodataset.org/zips/train2017.zip",),
        licence=_COCO,
        size=19_336_861_798,
        digest="md5:cced6f7f71b7629ddf16f17bbcfab6b2",
        known_from="PaddleDetection",
    ),
    "coco_annotations": Archive(
        urls=("http://images.cocodataset.org/annotations/annotations_trainval2017.zip",),
        licence=_COCO,
        size=252_907_541,
        digest="md5:f4bbac642086de4f52a3fdda2de5fa2c",
        known_from="PaddleDetection",
    ),
    "coco_panoptic": Archive(
        urls=("http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip",),
        licence=_COCO,
        size=860_725_834,
        digest="sha256:c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
        known_from="two users' lists that agree",
    ),
    "refcoco": _refer(
        "refcoco",
        taken="20220413011718",
        size=53_993_993,
        sha256="7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
    ),
    "refcoco+": _refer(
        "refcoco+",
        taken="20220413011656",
        size=45_613_210,
        sha256="5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
    ),
    "refcocog": _refer(
        "refcocog",
        taken="20220413012904",
        size=56_712_951,
        sha256="3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
    ),
    "ade20k": Archive(urls=("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",), licence=_ADE),
    "vg_image_data": Archive(urls=(f"{_VG_FILES}/image_data.json.zip",), licence=_VG, size=1_780_854, known_from=_MIRRORS),
    "vg_regions": Archive(
        urls=(f"{_VG_FILES}/region_descriptions.json.zip",), licence=_VG, size=127_377_968, known_from=_MIRRORS
    ),
    "vg_100k": Archive(urls=(f"{_VG_IMAGES}/images.zip",), licence=_VG, size=9_731_705_982, known_from=_MIRRORS),
    "vg_100k_2": Archive(urls=(f"{_VG_IMAGES}/images2.zip",), licence=_VG, size=5_471_658_058, known_from=_MIRRORS),
    "gqa_images": Archive(urls=("https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip",), licence=_GQA),
    "textvqa_images": Archive(
        urls=("https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",),
        licence=_TEXTVQA,
        size=7_072_297_970,
        known_from=_MIRRORS,
    ),
    "ocr_vqa_images": Archive(
        licence=_OTHERS,
        step="https://github.com/haotian-liu/LLaVA (section Visual Instruction Tuning, OCR-VQA: its download script; it takes "
        "the covers from the shop's own pages; save all as .jpg, as the rows name them)",
    ),
    "llava": _hub("liuhaotian/LLaVA-Instruct-150K", "llava_v1_5_mix665k.json", _LLAVA),
    "grandf": _hub("MBZUAI/GranD-f", "GranDf_HA_GCG_train.json", _GRANDF),
    "grandf_psg": _hub("MBZUAI/GranD-f", "OpenPsgGCG_train.json", _GRANDF),
    "grandf_images": Archive(
        licence=_GRANDF,
        step="https://github.com/mbzuai-oryx/groundingLMM (docs/datasets.md, GranDf_HA_images). "
        + _DRIVE
        + "gdown 1abdxVhrbNQhjJQ8eAcuPrOUBzhGaFsF_ and unpack it so that the folder GranDf_HA_images holds train",
    ),
    "aurora": Archive(
        licence=_AURORA,
        step="https://github.com/mahtabbigverdi/Aurora-perception (README, train_depth_annealing_data.json). "
        + _DRIVE
        + "gdown 1HvwgZa7x1QTWq8MPwEKBahxxtrK6tIfY",
    ),
    "aurora_images": Archive(
        licence=_ADE,
        step="https://ade20k.csail.mit.edu (the full ADE20K: register there and ask for it); the pictures with circles are not "
        "published: AiT/vae/add_marks_ade.ipynb of github.com/mahtabbigverdi/Aurora-perception draws them into ADE_blink",
    ),
    "hardblink": Archive(
        urls=(f"https://codeload.github.com/mahtabbigverdi/Aurora-perception/tar.gz/{AURORA_COMMIT}",), licence=_AURORA
    ),
    "grefcoco": _hub("FudanCVL/gRefCOCO", "grefs(unc).json", _GREFCOCO),
    "grefcoco_instances": _hub("FudanCVL/gRefCOCO", "instances.json", _GREFCOCO),
    "reasonseg": Archive(
        licence=_OTHERS,
        step="https://github.com/dvlab-research/LISA (section Dataset). "
        + _DRIVE
        + "gdown --folder 125mewyg5Ao6tZ3ZdJ-1-E3n04LGVELqy and unpack it below the folder ReasonSeg",
    ),
    "blink": _hub("BLINK-Benchmark/BLINK", "Relative_Depth/val-00000-of-00001.parquet", _BLINK),
    "seedbench": _hub("AILab-CVC/SEED-Bench", "SEED-Bench.json", _SEED),
    "seedbench_images": _hub("AILab-CVC/SEED-Bench", "SEED-Bench-image.zip", _SEED),
    "mme": _hub("darkyarding/MME", "MME_Benchmark_release_version.zip", _MME),
    "scienceqa_problems": Archive(urls=(f"{_SCIENCEQA_TEXTS}/problems.json",), licence=_SCIENCEQA),
    "scienceqa_splits": Archive(urls=(f"{_SCIENCEQA_TEXTS}/pid_splits.json",), licence=_SCIENCEQA),
    "scienceqa_val": Archive(urls=(f"{_SCIENCEQA_IMAGES}/val.zip",), licence=_SCIENCEQA),
    "scienceqa_test": Archive(urls=(f"{_SCIENCEQA_IMAGES}/test.zip",), licence=_SCIENCEQA),
    **{name: _table(name, md5) for md5, name in MD5.items()},
    "yours": Archive(licence=_OTHERS, step="the one who made it: it is none of the published data sets"),
}
"""All of them by name; those of VLMEvalKit's tables are the tables' own."""
