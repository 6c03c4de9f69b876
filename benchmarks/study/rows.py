"""The ablation study's numbers: gathered from evaluations, kept as one list over many sessions (ours).

A row is one trained model in one regime: ``{variant, seed, regime, metrics: [{name, value, low, high, n}]}``. Rows of one
(variant, seed, regime) replace each other and others stay, so a study may be run in pieces, on several machines. Nothing is
filled in: what has not been run has no row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from perceptio_core.params.profile import load_profile
from perceptio_core.params.values import PROFILES

MAIN = "main"
"""The regime of the profile itself: every label, tested on more questions of the same kind."""
LONGER = "longer"
"""The same, and three times the training."""
REGIMES = (
    MAIN,
    "labels_100",
    "labels_100_equal",
    "labels_1000",
    "labels_10000",
    "more_points",
    "new_scenes",
    "new_question",
    "new_question_back",
    "no_reading",
    "either_first",
    LONGER,
)
MODELS = (
    "full",
    "no_depth",
    "no_seg",
    "control",
    "no_marker",
    "no_token",
    "no_count",
    "no_reconstruction",
    "depth_first",
    "no_code_words",
    "no_own_codes",
    "k32",
    "k512",
    "n25",
    "n100",
)
CODES = {
    "codes_oracle": "codes_oracle",
    "codes_random": "codes_random",
    "codes_zero": "codes_zeroed",
    "codes_other": "codes_other",
}
"""Variants that are `full` with other depth codes, and the name of the control in the profile's section `evaluate`."""
CODES_IN = (MAIN, *(regime for regime in REGIMES if regime.startswith("labels_")), LONGER)
"""Regimes in which they have rows of their own."""
VARIANTS = (*MODELS, *CODES)
STUDY = "studio"
"""The profile; those named ``studio-<variant>`` differ from it in the codebook, and give a variant of that name."""

_NEW_SCENES = {"new_scenes_hardblink_mean": "hardblink_mean", "new_scenes_ciou": "res_ciou", "new_scenes_giou": "res_giou"}


class Value(BaseModel):
    """One metric; `low` and `high` bound its 95 % interval, None where it has none; `n` questions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    value: float
    low: float | None
    high: float | None
    n: int

    @model_validator(mode="after")
    def _finite(self) -> Value:
        if not all(math.isfinite(number) for number in (self.value, self.low or 0.0, self.high or 0.0)):
            raise ValueError(f"{self.name} is not finite")
        return self


class Row(BaseModel):
    """One trained model in one regime."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    variant: str
    seed: int
    regime: str
    metrics: list[Value]

    @model_validator(mode="after")
    def _known(self) -> Row:
        for name, value, allowed in (("variant", self.variant, VARIANTS), ("regime", self.regime, REGIMES)):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
        return self

    @property
    def key(self) -> tuple[int, int, int]:
        """Where the row stands among others: by regime, variant and seed."""
        return REGIMES.index(self.regime), VARIANTS.index(self.variant), self.seed

    def get(self, name: str) -> Value | None:
        """The metric of that name; None if the row has none."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def gather(artifacts: Path, *, profiles: Path = PROFILES) -> list[Row]:
    """The rows of all evaluations of the study below a folder.

    Args:
        artifacts: holds ``studio/evaluate/<variant>/metrics.json`` and the same of the profiles ``studio-*``.
        profiles: folder of the profiles, which say what seed a variant has.

    Raises:
        ValueError: a file is no list of metrics, or of a variant that the profile does not have; names it.
    """
    rows: list[Row] = []
    for file in sorted(artifacts.glob(f"{STUDY}*/evaluate/*/metrics.json")):
        profile, name = file.parts[-4], file.parts[-2]
        try:
            seed = load_profile(profile, folder=profiles).variant(name).seed
            variant, regime = identity(profile, name)
            values = [
                Value(**{key: metric[key] for key in Value.model_fields})
                for metric in json.loads(file.read_text(encoding="utf-8"))
            ]
            rows += _split(variant, seed, regime, values)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}: {error}") from error
    return rows


def identity(profile: str, name: str) -> tuple[str, str]:
    """Variant and regime of a variant of a profile: ("studio", "labels_100_control") -> ("control", "labels_100").

    Raises:
        ValueError: the study has no such variant or regime.
    """
    if profile != STUDY:
        variant, regime = profile.removeprefix(f"{STUDY}-"), MAIN
        if variant not in MODELS or name != "full":
            raise ValueError(f"the study has no variant {name!r} of profile {profile!r}; of {variant} it has full alone")
        return variant, regime
    plain = re.sub(r"_s\d+$", "", name)
    for regime in sorted(REGIMES, key=len, reverse=True):
        if plain.startswith(f"{regime}_") and plain.removeprefix(f"{regime}_") in MODELS:
            return plain.removeprefix(f"{regime}_"), regime
    if plain not in MODELS:
        raise ValueError(f"the study has no variant {name!r}; allowed are {', '.join(MODELS)}, after a regime, before _s<seed>")
    return plain, MAIN


def _split(variant: str, seed: int, regime: str, values: Sequence[Value]) -> list[Row]:
    """The row of a model; of `full` one more for each replacement of its codes; and one more for the unlike world."""
    if variant in MODELS[MODELS.index("k32") :] or regime not in CODES_IN:
        return [Row(variant=variant, seed=seed, regime=regime, metrics=list(values))]
    rest, rows = list(values), []
    if variant == "full":
        for code, control in CODES.items():
            found = [value for value in rest if value.name.startswith(f"{control}_")]
            rest = [value for value in rest if value not in found]
            renamed = [value.model_copy(update={"name": value.name.removeprefix(f"{control}_")}) for value in found]
            rows += [Row(variant=code, seed=seed, regime=regime, metrics=renamed)] if renamed else []
    if regime == MAIN:
        new = [value.model_copy(update={"name": _NEW_SCENES[value.name]}) for value in rest if value.name in _NEW_SCENES]
        rest = [value for value in rest if value.name not in _NEW_SCENES]
        rows += [Row(variant=variant, seed=seed, regime="new_scenes", metrics=new)] if new else []
    return [Row(variant=variant, seed=seed, regime=regime, metrics=rest), *rows]


def read_rows(file: Path) -> list[Row]:
    """The rows of a file; none where there is no such file.

    Raises:
        ValueError: it is not such a list; names file, row and key.
    """
    if not file.is_file():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{file}: expected a list of rows, got {type(content).__name__}")
    rows = []
    for number, row in enumerate(content):
        try:
            rows.append(Row.model_validate(row))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise ValueError(f"{file}: row {number}: {where}: {fault['msg'].removeprefix('Value error, ')}") from error
    return rows


def merge(*parts: Iterable[Row]) -> list[Row]:
    """All rows in order; of those with equal variant, seed and regime the one of the last part."""
    by_key: dict[Any, Row] = {row.key: row for part in parts for row in part}
    return [by_key[key] for key in sorted(by_key)]


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write the rows, a line each: a difference then shows which run changed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f" {json.dumps(row.model_dump(), allow_nan=False)}" for row in rows)
    file.write_text(f"[\n{lines}\n]\n" if rows else "[]\n", encoding="utf-8")
