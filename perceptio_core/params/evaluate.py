"""Parameters of the stage `evaluate`."""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from perceptio_core.params.base import Section

OwnKind = Literal["questions", "masks"]
Kind = Literal[
    "refer", "grefcoco", "reasonseg", "hardblink", "blink_depth", "mmbench", "seedbench", "mme", "ai2d", "scienceqa", OwnKind
]
OWN = ("questions", "masks")
"""Kinds that ask what stands in the user's own files, as `sources.datasets` reads them."""
SPLIT_REQUIRED = ("refer", "grefcoco")
SETS = (*SPLIT_REQUIRED, "reasonseg", *OWN)
"""Kinds of which several sets stand side by side: a name tells their metrics apart."""
SPLIT_ALLOWED = (*SPLIT_REQUIRED, "mmbench", "scienceqa", "hardblink")
ResProtocolName = Literal["canonical", "lisa", "sa2va", "xsam"]
"""How referring segmentation is scored; `perceptio_core.evaluation.benchmarks.res_protocols` says what each is."""
Replacement = Literal["oracle", "random", "zeroed", "other"]
"""Depth codes in place of the model's own; `perceptio_core.evaluation.running.depth_codes` says what each is."""


class BenchmarkParams(Section):
    """One benchmark: where its official files lie and how it is asked."""

    kind: Kind
    name: str | None = Field(default=None, pattern=r"^[a-z0-9_+]+$")
    """Tells entries of one kind apart, in metrics and file names. For refer, grefcoco, reasonseg, questions and masks, names of
    metrics begin with it, and not with res or the kind. Any other kind with a name is a control: the headline has only its
    main metric, as <name>_<metric>."""
    path: str
    """Below the data root: a folder (reasonseg: of the split); mmbench, ai2d: the TSV; seedbench: the JSON or TSV; scienceqa:
    the folder or TSV; blink_depth: the parquet or its folder; questions: the table of questions, of which the rows without a
    mask are asked; masks: the table, of which those with a mask are asked, or a .json of COCO instances."""
    split: str | None = None
    """refer: val, testA, testB or test. grefcoco: val, testA or testB. scienceqa's folder: val or test (null).
    hardblink: 3, 4 or 5, as text, for one subset; null keeps all. mmbench: a value of the column split; null keeps all rows."""
    split_by: str | None = None
    """refer: unc, umd or google; null where the folder holds one file of references."""
    images: str | None = None
    """refer, grefcoco: folder of the COCO train2014 images below the data root; null: <path>/images/mscoco/images/train2014.
    questions, masks: as in `sources.datasets`, and so are the next two."""
    masks: str | None = None
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    """Null: all that is in the file is asked; else only what `sources.datasets` takes for validation by the same share."""
    protocol: ResProtocolName = "canonical"
    """refer: by whose rules it is scored. LISA's answers are teacher-forced: segment: true is the nearest to that."""
    limit: PositiveInt | None = None
    """At most this many expressions, questions (mmbench: with all rotations) or images (mme), spread over the file."""
    segment: bool | None = None
    """Whether masks are forced, forbidden, or (null) up to the model."""
    depth: bool | None = None
    """The same for depth codes."""
    codes: Literal["predicted"] | Replacement = "predicted"
    """Codes in the depth spans: the model's own; or, as a control, oracle (the teacher's of this picture), random, zeroed
    (code 0 everywhere) or other (the teacher's of another picture)."""
    picture: Literal["own", "gray"] = "own"
    """gray: as a control, a gray picture of the same size in place of the question's own, so that the text alone answers."""
    except_variants: tuple[str, ...] = ()
    """Not for these variants, or those whose name fits a pattern such as *control*: the control, for one, has no [SEG] and is
    not asked for masks."""
    panels: int = Field(default=2, ge=0)
    """Questions of this benchmark that the report shows."""

    @property
    def label(self) -> str:
        """What the benchmark is called in file names and progress lines."""
        if self.kind in SETS:
            return self.name or ("res" if self.kind == "refer" else self.kind)
        return f"{self.name}_{self.kind}" if self.name else self.kind

    def is_for(self, variant: str) -> bool:
        """Whether the entry is asked of this variant."""
        return not any(fnmatchcase(variant, pattern) for pattern in self.except_variants)

    @property
    def is_control(self) -> bool:
        """Whether the entry asks a benchmark in another way than it is meant to be asked."""
        return self.name is not None and self.kind not in SETS

    @field_validator("path", "images", "masks")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is not None and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
            raise ValueError("a path below the data root is allowed, without ..")
        return path

    @model_validator(mode="after")
    def _split_where_it_means_something(self) -> Self:
        if self.kind in SPLIT_REQUIRED and self.split is None:
            raise ValueError(f"split is required for {self.kind}: val, testA, testB or (refer) test")
        if self.kind not in SPLIT_ALLOWED and self.split is not None:
            raise ValueError(f"split is allowed for {', '.join(SPLIT_ALLOWED)} only")
        if self.kind == "hardblink" and self.split not in (None, "3", "4", "5"):
            raise ValueError('split of hardblink must be "3", "4" or "5"')
        if self.kind not in (*SPLIT_REQUIRED, *OWN) and self.images is not None:
            raise ValueError("images is allowed for refer, grefcoco, questions and masks only")
        if self.kind not in OWN and (self.masks is not None or self.validation_share is not None):
            raise ValueError("masks and validation_share are allowed for questions and masks only")
        if self.kind != "refer" and (self.split_by is not None or self.protocol != "canonical"):
            raise ValueError("split_by and protocol are allowed for refer only")
        return self

    @model_validator(mode="after")
    def _controls_need_a_name(self) -> Self:
        if self.codes != "predicted" and (self.depth is False or self.name is None):
            raise ValueError(f"codes: {self.codes} needs a name for the control, and is not allowed with depth: false")
        if self.codes == "other" and self.limit == 1:
            raise ValueError("codes: other needs a second question, whose picture's codes it takes: limit must be 2 or more")
        if self.picture == "gray" and not self.is_control:
            raise ValueError(f"picture: gray is a control: it needs a name, and is not allowed for {', '.join(SETS)}")
        return self


class EvaluateParams(Section):
    """Which benchmarks, and how they are asked and scored."""

    benchmarks: tuple[BenchmarkParams, ...] = Field(min_length=1)
    batch_size: PositiveInt
    max_new_tokens: PositiveInt
    """Longest answer text in tokens; perception spans come on top."""
    bootstrap_samples: PositiveInt = 2000
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap: generation is greedy."""

    @model_validator(mode="after")
    def _labels_once(self) -> Self:
        labels = [entry.label for entry in self.benchmarks]
        if doubled := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two benchmarks have the same name: {', '.join(doubled)}; give one of them a name")
        return self
