"""All parameters of a run as one typed, frozen `Profile`: whatever is refused in any section is refused here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.params.depth_codebook import DepthCodebookParams
from perceptio_core.params.evaluate import EvaluateParams
from perceptio_core.params.foundations import FoundationsParams
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.report import ReportParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.teacher_depth import TeacherDepthParams
from perceptio_core.params.values import PROFILES, SECTIONS, Values, read_values


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A validated set of parameters: a field per section, and the variants of co-training."""

    name: str
    active: tuple[str, ...]
    """The variants that a run makes."""
    sources: SourcesParams
    foundations: FoundationsParams
    teacher_depth: TeacherDepthParams
    depth_codebook: DepthCodebookParams
    joint_shards: JointShardsParams
    cotrain: CotrainParams
    evaluate: EvaluateParams
    report: ReportParams
    variants: Mapping[str, CotrainParams]
    """Per variant name, `cotrain` with that variant's overrides put on top."""

    @classmethod
    def of(cls, values: Values) -> Self:
        """Check every section and variant.

        Raises:
            ValueError: an unknown key, a wrong type or a refused value; names file, key and what is allowed.
        """
        return cls(
            name=values.profile,
            active=tuple(values.plain["active"]),
            sources=values.section("sources", SourcesParams),
            foundations=values.section("foundations", FoundationsParams),
            teacher_depth=values.section("teacher_depth", TeacherDepthParams),
            depth_codebook=values.section("depth_codebook", DepthCodebookParams),
            joint_shards=values.section("joint_shards", JointShardsParams),
            cotrain=values.section("cotrain", CotrainParams),
            evaluate=values.section("evaluate", EvaluateParams),
            report=values.section("report", ReportParams),
            variants={name: values.variant(name, CotrainParams) for name in values.plain["variants"]},
        )

    def variant(self, name: str) -> CotrainParams:
        """The co-training parameters of one variant.

        Raises:
            ValueError: there is no such variant; names those that there are.
        """
        if name not in self.variants:
            raise ValueError(f"profile {self.name}: variants has no {name!r}; allowed are {', '.join(self.variants)}")
        return self.variants[name]


def load_profile(name: str | None = None, *, folder: Path = PROFILES) -> Profile:
    """Read and check a profile, ``<folder>/<name>.yaml`` with what it extends; without a name what ``params.yaml`` holds.

    Raises:
        ValueError: no such profile, or something in it is refused; names file, key and what is allowed.
    """
    return Profile.of(read_values() if name is None else read_values(folder / f"{name}.yaml"))


def complete(values: Values) -> Values:
    """The same set with every key that has a default, but in lists: they are as they were said. Checks all of it.

    Raises:
        ValueError: as `Profile.of`.
    """
    profile = Profile.of(values)
    dumped = {name: getattr(profile, name).model_dump(mode="json", exclude={"seed"}) for name in SECTIONS}
    return replace(values, plain={key: _filled(dumped.get(key), value) for key, value in values.plain.items()})


def _filled(defaults: Any, said: Any) -> Any:
    """What is said, and of the defaults what is not."""
    if not isinstance(defaults, dict) or not isinstance(said, dict):
        return said
    missing = {key: value for key, value in defaults.items() if key not in said}
    ours = {key: _filled(defaults.get(key), value) for key, value in said.items()}
    return {key: (ours | missing)[key] for key in {**defaults, **ours}}
