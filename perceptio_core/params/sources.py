"""Parameters of the stage `sources`: the rendered world or the user's folders, and the data sets in it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from perceptio_core.params.base import Section, expanded
from perceptio_core.params.render import RenderParams


class DatasetParams(Section):
    """One data set below the data root, and the split of it that is read."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+-]+$")]
    """First part of its record ids and image keys; entries of one data set with different splits share it."""
    kind: Literal["refer", "grefer", "coco", "panoptic", "ade20k", "gcg", "llava", "aurora", "vg", "questions"]
    """RefCOCO/+/g; gRefCOCO; COCO instances; COCO panoptic; ADE20K (150 classes); GranD-f; LLaVA conversations;
    AURORA's depth maps and marked pictures; Visual Genome's regions; a table of questions about a folder of images."""
    path: str
    """refer, grefer: the folder with instances.json; coco: that, or a file such as annotations/instances_train2017.json;
    panoptic, gcg, llava, aurora: the JSON file; ade20k: the folder ADEChallengeData2016; vg: the folder with
    region_descriptions.json; questions: the .csv, .tsv, .jsonl or .parquet. Relative to the data root."""
    split: Literal["train", "val"]
    """What its records are for; for refer and grefer also which official split is read."""
    split_by: str | None = None
    """refer: unc, umd or google; null where the folder holds one file of references."""
    images: str | None = None
    """Folder of the image files, relative to the data root. Null: the place that is usual for the kind (refer,
    grefer: <path>/images/mscoco/images/train2014, coco, panoptic: images beside the file, llava: the data root, vg: <path>,
    gcg, aurora and questions: where the file lies). ade20k has its own."""
    masks: str | None = None
    """questions: folder, relative to the data root, that the paths in the column mask are relative to. Null: the table's."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """questions, coco: where nobody has split the data, about this share of the pictures is for validation, chosen by their
    paths (`perceptio_core.data.readers.own_split`): an entry with split: train and one with split: val read the same file.
    Null: all that is in the file is of the entry's split."""
    descriptions: str | None = None
    """refer: a .jsonl of {ref_id, description}, relative to the data root: what a captioner, or you, say of an object. It then
    stands in the answers to all expressions for that object, as in the paper (where it has its descriptions from is not known).
    `joint_shards.describe_objects` describes the others."""
    max_objects: PositiveInt = 8
    """coco, panoptic: categories with more objects in an image than this are left out. vg: regions of an image."""
    limit: PositiveInt | None = None
    """At most this many records, spread evenly; null keeps all."""

    @property
    def task(self) -> Literal["referring", "conversation", "depth_map"]:
        """What its records are. Where they are of several (aurora; questions with masks): what an unreadable row counts as."""
        if self.kind == "aurora":
            return "depth_map"
        return "conversation" if self.kind in ("llava", "vg", "questions") else "referring"

    @field_validator("path", "images", "masks", "descriptions")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise ValueError("must be relative to the data root and stay below it")
        return path

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.split_by is not None and self.kind != "refer":
            raise ValueError(f"split_by is for kind refer only, not for {self.kind}")
        if self.descriptions is not None and self.kind != "refer":
            raise ValueError(f"descriptions is for kind refer only, not for {self.kind}")
        if self.masks is not None and self.kind != "questions":
            raise ValueError(f"masks is for kind questions only, not for {self.kind}")
        if self.validation_share is not None and self.kind not in ("questions", "coco"):
            raise ValueError(f"validation_share is for kinds questions and coco only, not for {self.kind}")
        if self.images is not None and self.kind == "ade20k":
            raise ValueError("images: ade20k has its images in its own folder")
        return self


class SourcesParams(Section):
    """The `sources` section."""

    render: RenderParams | None
    """What to render; null reads the folders below `root` instead."""
    root: str | None
    """The user's data root; $NAME stands for an environment variable. Null when a world is rendered."""
    datasets: Annotated[tuple[DatasetParams, ...], Field(min_length=1)]
    held_out: tuple[str, ...] = ()
    """Test images, below the data root, that are kept out of training by COCO id and by their look: folders of images and
    tables, images, .tsv and .parquet tables with images in them, REFER's refs(*).p (the images of all its splits but train).
    Images are told by their content, linked folders are followed, and what is no image is named in the quarantine."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = 2
    """Processes that render and that check images, and threads that look at test images; null: one per processor core that is
    there. On Ray the cluster says how many check images."""

    @field_validator("held_out")
    @classmethod
    def _below_root(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        if strange := [place for place in places if Path(place).is_absolute() or ".." in Path(place).parts]:
            raise ValueError(f"must be relative to the data root and stay below it: {', '.join(strange)}")
        return places

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.render is None) == (self.root is None):
            raise ValueError("exactly one of render and root must be given, the other be null")
        entries = [(dataset.name, dataset.kind, dataset.path, dataset.split) for dataset in self.datasets]
        if len(set(entries)) < len(entries):
            raise ValueError("datasets: two entries have the same name, kind, path and split")
        owners = {(dataset.name, dataset.kind, dataset.path) for dataset in self.datasets}
        if len({name for name, _, _ in owners}) < len(owners):
            raise ValueError("datasets: one name stands for two data sets")
        return self

    def expanded_root(self) -> Path:
        """`root` with its environment variables filled in.

        Raises:
            ValueError: there is no root, a variable is not set, or the folder does not exist; says which.
        """
        if self.root is None:
            raise ValueError("sources.root is null: the data root is the rendered world")
        return expanded(self.root, key="sources.root", holds="the data sets")
