"""Every benchmark by name, and where its official files lie below a data root: as the benchmarks' own tools lay them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceptio_core.params.evaluate import BenchmarkParams


def _referring(folder: str, *, split_by: str, splits: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {
        f"{folder}_{split.lower()}": {"kind": "refer", "path": folder, "split": split, "split_by": split_by} for split in splits
    }


def _mmbench(language: str) -> dict[str, dict[str, Any]]:
    names = [f"MMBench_{split}_{language}{version}" for split in ("DEV", "TEST") for version in ("", "_V11")]
    return {name.lower(): {"kind": "mmbench", "path": f"mmbench/{name}.tsv"} for name in names}


CATALOGUE: Mapping[str, Mapping[str, Any]] = {
    **_referring("refcoco", split_by="unc", splits=("val", "testA", "testB")),
    **_referring("refcoco+", split_by="unc", splits=("val", "testA", "testB")),
    **_referring("refcocog", split_by="umd", splits=("val", "test")),
    **{
        f"grefcoco_{split.lower()}": {"kind": "grefcoco", "path": "grefcoco", "split": split}
        for split in ("val", "testA", "testB")
    },
    **{f"reasonseg_{split}": {"kind": "reasonseg", "path": f"reason_seg/ReasonSeg/{split}"} for split in ("val", "test")},
    "hardblink": {"kind": "hardblink", "path": "hardblink"},
    **{f"hardblink_{n}": {"kind": "hardblink", "path": "hardblink", "split": str(n)} for n in (3, 4, 5)},
    "blink_depth": {"kind": "blink_depth", "path": "blink/Relative_Depth"},
    **_mmbench("EN"),
    **_mmbench("CN"),
    "seedbench": {"kind": "seedbench", "path": "seedbench/SEED-Bench.json"},
    "seedbench_img": {"kind": "seedbench", "path": "seedbench/SEEDBench_IMG.tsv"},
    "mme": {"kind": "mme", "path": "mme"},
    "ai2d_test": {"kind": "ai2d", "path": "ai2d/AI2D_TEST.tsv"},
    "ai2d_test_no_mask": {"kind": "ai2d", "path": "ai2d/AI2D_TEST_NO_MASK.tsv"},
    "scienceqa": {"kind": "scienceqa", "path": "scienceqa"},
    "scienceqa_test": {"kind": "scienceqa", "path": "scienceqa/ScienceQA_TEST.tsv"},
}
"""Parameters of the benchmark by its name."""

FAMILIES = {"mmbench": "mmbench/*.tsv", "ai2d": "ai2d/*.tsv"}
"""Names for whichever one table lies in a folder."""


def official(name: str, *, root: Path) -> BenchmarkParams:
    """The parameters of a benchmark whose official files lie below `root`.

    Raises:
        ValueError: no benchmark has this name; names those that there are.
    """
    name = name.lower()
    if name in FAMILIES:
        found = sorted(root.glob(FAMILIES[name]))
        if len(found) != 1:
            names = [file.name for file in found]
            raise ValueError(f"{root / FAMILIES[name]}: expected one table, found {names}; name it: {_like(name)}")
        return BenchmarkParams.from_mapping({"kind": name, "path": found[0].relative_to(root).as_posix()}, where=name)
    if name not in CATALOGUE:
        raise ValueError(f"there is no benchmark {name!r}; there are {_like(name)}")
    values = dict(CATALOGUE[name])
    if values["kind"] in ("refer", "grefcoco", "reasonseg"):
        values["name"] = name
    return BenchmarkParams.from_mapping(values, where=name)


def _like(name: str) -> str:
    """The names that begin as `name` does, or all."""
    return ", ".join([known for known in CATALOGUE if known.startswith(name)] or [*CATALOGUE, *FAMILIES])
