"""Parameters of the stage `evaluate`."""

from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from perceptio_core.params.base import Section

Kind = Literal["refer", "hardblink", "mmbench", "seedbench", "mme"]


class BenchmarkParams(Section):
    """One benchmark: where its official files lie and how it is asked."""

    kind: Kind
    name: str | None = Field(default=None, pattern=r"^[a-z0-9_+]+$")
    """File name of the predictions, and for refer the first part of the metrics' names; null: the kind, for refer res."""
    path: str
    """Below the data root: a folder, for mmbench the TSV, for seedbench the JSON."""
    split: str | None = None
    """refer: val, testA, testB or test. mmbench: a value of the column split; null keeps all rows."""
    split_by: str | None = None
    """refer: unc, umd or google; null where the folder holds one file of references."""
    images: str | None = None
    """refer: folder of the COCO train2014 images below the data root; null: <path>/images/mscoco/images/train2014."""
    limit: PositiveInt | None = None
    """At most this many expressions, questions (mmbench: with all rotations) or images (mme), spread over the file."""
    segment: bool | None = None
    """Whether masks are forced, forbidden, or (null) up to the model."""
    depth: bool | None = None
    """The same for depth codes."""
    except_variants: tuple[str, ...] = ()
    """Not for these variants: the control, for one, has no [SEG] and is not asked for masks."""
    panels: int = Field(default=2, ge=0)
    """Questions of this benchmark that the report shows."""

    @property
    def label(self) -> str:
        """What the benchmark is called in file names and progress lines."""
        return self.name or ("res" if self.kind == "refer" else self.kind)

    @field_validator("path", "images")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
            raise ValueError("a path below the data root is allowed, without ..")
        return path

    @model_validator(mode="after")
    def _split_where_it_means_something(self) -> Self:
        if self.kind == "refer" and self.split is None:
            raise ValueError("split is required for refer: val, testA, testB or test")
        if self.kind not in ("refer", "mmbench") and self.split is not None:
            raise ValueError("split is allowed for refer and mmbench only")
        if self.kind != "refer" and (self.split_by is not None or self.images is not None):
            raise ValueError("split_by and images are allowed for refer only")
        return self


class EvaluateParams(Section):
    """Which benchmarks, and how they are asked and scored."""

    benchmarks: tuple[BenchmarkParams, ...] = Field(min_length=1)
    batch_size: PositiveInt
    max_new_tokens: PositiveInt
    """Longest answer text in tokens; perception spans come on top."""
    max_pixels: PositiveInt = 100_000_000
    """Larger images are refused by their header."""
    bootstrap_samples: PositiveInt = 2000
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap: generation is greedy."""

    @model_validator(mode="after")
    def _labels_once(self) -> Self:
        labels = [entry.label for entry in self.benchmarks]
        kinds = [entry.kind for entry in self.benchmarks if entry.kind != "refer"]
        if len(set(labels)) < len(labels) or len(set(kinds)) < len(kinds):
            raise ValueError("two benchmarks have the same name; only refer may occur twice, under different names")
        return self
