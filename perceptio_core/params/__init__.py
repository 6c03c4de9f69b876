"""The parameters of a run: `load_profile` reads ``profiles/<name>.yaml`` into one typed, frozen `Profile`.

Every stage checks the whole profile, so that a typing error in the last section is found by the first stage. The section
classes are imported by name, not by import statements: a stage's *code* depends on the classes that it uses, not on
those that it merely checks (`pipeline.dependencies` reads the import statements).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from perceptio_core.params.base import Section, read_yaml

if TYPE_CHECKING:
    from perceptio_core.params.cotrain import CotrainParams
    from perceptio_core.params.depth_codebook import DepthCodebookParams
    from perceptio_core.params.evaluate import EvaluateParams
    from perceptio_core.params.foundations import FoundationsParams
    from perceptio_core.params.joint_shards import JointShardsParams
    from perceptio_core.params.report import ReportParams
    from perceptio_core.params.sources import SourcesParams
    from perceptio_core.params.teacher_depth import TeacherDepthParams

__all__ = ["PROFILES", "SECTIONS", "Profile", "Section", "load_profile"]

PROFILES = Path("profiles")
"""Folder of the profiles, relative to the repository root: the working directory of every command."""

SECTIONS = (
    "sources",
    "foundations",
    "teacher_depth",
    "depth_codebook",
    "joint_shards",
    "cotrain",
    "evaluate",
    "report",
)
"""The sections of a profile = the stages, in the order of the pipeline."""

_DEFAULT_VARIANTS = "default_variants"
MAIN_ALONE = ("full",)
"""The variants of a run where neither a person nor the profile says which."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One validated profile: a field per section, and the variants of co-training."""

    name: str
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
    default_variants: tuple[str, ...]
    """Those that a run makes where nobody says which: the file's key `default_variants`, or else `full` alone."""

    def variant(self, name: str) -> CotrainParams:
        """The co-training parameters of one variant.

        Raises:
            ValueError: the profile has no such variant; names those it has.
        """
        if name not in self.variants:
            allowed = ", ".join(self.variants)
            raise ValueError(f"{PROFILES / self.name}.yaml: variants has no {name!r}; allowed are {allowed}")
        return self.variants[name]


def load_profile(name: str, *, folder: Path = PROFILES) -> Profile:
    """Read and check ``<folder>/<name>.yaml``.

    Raises:
        ValueError: no such profile, or an unknown key, a wrong type or a refused value in it; names file, key and what
            is allowed.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        allowed = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise ValueError(f"there is no profile {path}; profiles here: {allowed}")
    values = read_yaml(path)
    required, optional = {*SECTIONS, "variants"}, {_DEFAULT_VARIANTS}
    if unknown := values.keys() - required - optional:
        raise ValueError(f"{path}: unknown sections {sorted(unknown)}; allowed are {sorted(required | optional)}")
    if missing := required - values.keys():
        raise ValueError(f"{path}: missing sections {sorted(missing)}")
    sections = {
        section: _section_class(section).from_mapping(values[section] or {}, where=f"{path}: {section}") for section in SECTIONS
    }
    variants = _variants(values, path)
    default = values.get(_DEFAULT_VARIANTS, list(MAIN_ALONE))
    if not isinstance(default, list) or not default or not all(isinstance(one, str) and one in variants for one in default):
        raise ValueError(
            f"{path}: {_DEFAULT_VARIANTS}: expected a list of names under variants ({', '.join(variants)}), got {default!r}"
        )
    return Profile(name=name, variants=variants, default_variants=tuple(default), **cast("dict[str, Any]", sections))


def _section_class(section: str) -> type[Section]:
    """``teacher_depth`` -> ``perceptio_core.params.teacher_depth.TeacherDepthParams``."""
    class_name = "".join(part.capitalize() for part in section.split("_")) + "Params"
    module = importlib.import_module(f"perceptio_core.params.{section}")
    return cast("type[Section]", getattr(module, class_name))


def _variants(values: dict[str, Any], path: Path) -> dict[str, CotrainParams]:
    variants = values["variants"]
    if not isinstance(variants, dict) or not variants:
        raise ValueError(f"{path}: variants: expected a mapping of variant names to overrides of cotrain")
    cotrain = _section_class("cotrain")
    return {
        name: cast("CotrainParams", cotrain.from_mapping(merged, where=f"{path}: variants.{name}"))
        for name, overrides in variants.items()
        for merged in [_overlay(values["cotrain"], overrides or {}, f"{path}: variants.{name}")]
    }


def _overlay(base: Any, overrides: Any, where: str) -> Any:
    """`base` with `overrides` put on top, mapping by mapping; a list or a plain value is replaced whole."""
    if not isinstance(base, dict) or not isinstance(overrides, dict):
        raise ValueError(f"{where}: expected a mapping over a mapping, got {overrides!r}")
    merged = dict(base)
    for key, value in overrides.items():
        merged[key] = _overlay(base[key], value, f"{where}.{key}") if isinstance(base.get(key), dict) else value
    return merged
