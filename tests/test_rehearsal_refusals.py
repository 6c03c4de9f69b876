"""What the rehearsal would stop at is said before its first stage: by ``make check-profile``, or by the look ahead.

The profiles of the paper's sizes, their data as a handful of rows, their models as names on a local hub.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.check_profile import inconsistencies, main
from full_layout import full_layout
from hub_server import Hub
from parameters import values_of
from perceptio_core.params.profile import Profile, load_profile
from stages.inputs import faults

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("perceptio-1b", "perceptio-4b", "perceptio-8b")
FILES = {
    "internvl": ("config.json", "model-00001-of-00002.safetensors"),
    "sam2": ("sam2.1_hiera_large.pt", "model.safetensors"),
    "depth_anything": ("config.json", "model.safetensors"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_layout(tmp_path_factory.mktemp("full") / "data")


@pytest.fixture
def road(data: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The published models on the hub, the data, and a folder with the profiles."""
    monkeypatch.setenv("PERCEPTIO_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "profiles", tmp_path / "profiles")
    for name in NAMES:
        models = values_of(name)["foundations"]
        for part, files in FILES.items():
            hub.files[models[part]["repo"]] = dict.fromkeys(files, b"")
            hub.heads[models[part]["repo"]] = models[part]["revision"]
    return hub


def check_profile(name: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of ``make check-profile PROFILE=name``."""
    monkeypatch.setattr("sys.argv", ["check_profile", name])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(str(stop.value.code)) if str(stop.value.code).isdigit() else 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("road")
def test_nothing_stands_in_the_way_of_a_profile_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_profile(name, monkeypatch) == 0
    assert list(faults(load_profile(name))) == []


Values = dict[str, Any]


def _set(path: str, value: Any) -> Callable[[Values], None]:
    """A change of one value, by its keys."""

    def change(values: Values) -> None:
        *keys, last = path.split(".")
        for key in keys:
            values = values[int(key)] if isinstance(values, list) else values[key]
        values[last] = value

    return change


def _benchmark(label: str, **changes: Any) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        next(row for row in values["evaluate"]["benchmarks"] if row.get("name", row["kind"]) == label).update(changes)

    return change


def _dataset(name: str, **changes: Any) -> Callable[[Values], None]:
    def change(values: Values) -> None:
        for row in values["sources"]["datasets"]:
            if row["name"] == name:
                row |= changes

    return change


def _without(**values: tuple[str, ...]) -> Callable[[Values], None]:
    """A change that leaves out the data sets with one of these values."""
    ((key, some),) = values.items()

    def change(values: Values) -> None:
        values["sources"]["datasets"] = [row for row in values["sources"]["datasets"] if row[key] not in some]

    return change


def _drop_held_out(place: str) -> Callable[[Values], None]:
    return lambda values: values["sources"]["held_out"].remove(place)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("cotrain.step", 1), "step"),
        (_set("cotrain.batch_size", 60), "must be a multiple of processes 8 x accumulation 4"),
        (_set("cotrain.accumulation", 3), "must be a multiple of"),
        (_set("cotrain.mixture.depth_maps", 0.1), "depth_maps"),
        (_set("cotrain.order", ["depth", "depth"]), "order must name"),
        (_set("variants.control.mixture.depth_map", 0.1), "must be 0 when spans.depth is false"),
        (_set("foundations.sam2.config", "sam2.1_hiera_xl"), "is no published model"),
        (_set("foundations.internvl.revision", "main"), "revision"),
        (_set("depth_codebook.resolution", 321), "resolution"),
        (_set("variants", {"control": {}}), "variants (control), got ['full']"),
        (_benchmark("codes_other", limit=1), "limit must be 2 or more"),
        (_benchmark("refcoco_testa", split="testC"), "have the splits"),
        (_benchmark("refcoco_testa", except_variants=[]), "asks the variant control for masks"),
        (_benchmark("codes_zeroed", except_variants=[]), "asks the variant control for depth codes"),
        (_benchmark("codes_zeroed", name="codes_random"), "have the same name"),
        (_benchmark("mmbench", path="mmbench/MMBench_DEV_EN.xlsx"), "is a file .tsv"),
        (_benchmark("mme", kind="mmee"), "mmee"),
        (_without(kind=("llava", "aurora")), "mixture.conversation: is drawn, but no data set has conversations"),
        (_without(split=("val",)), "none has split val"),
        (_dataset("refcocog", split_by="unc"), "split_by unc; allowed are umd, google"),
        (_dataset("llava", path="llava/llava_v1_5_mix665k.jsonl"), "is a file .json"),
        (_drop_held_out("mme"), "names no pictures of the benchmark mme"),
    ],
)
def test_what_is_known_without_data_is_refused_by_check_profile(
    change: Callable[[Values], None], told: str, road: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert road.files
    broken(change)
    try:
        found = "\n".join(inconsistencies(load_profile("broken")))  # each of which makes the command end with 1
    except ValueError as error:
        found = str(error)
        assert check_profile("broken", monkeypatch) == 1
    assert told in found


@pytest.mark.usefixtures("road")
def test_check_profile_ends_with_1_where_the_parts_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(_drop_held_out("mme"))
    assert check_profile("broken", monkeypatch) == 1


def broken(change: Callable[[Values], None]) -> None:
    """Write profiles/broken.yaml: perceptio-1b with a change."""
    values = values_of("perceptio-1b")
    change(values)
    Path("profiles/broken.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            _set("foundations.sam2.checkpoint", "sam2.1_hiera_big.pt"),
            r"the hub has no sam2.1_hiera_big.pt there; it has model.safetensors, sam2.1_hiera_large.pt",
        ),
        (_set("foundations.internvl.repo", "OpenGVLab/InternVL3-1B-HF"), "OpenGVLab/InternVL3-1B-HF at"),
        (_set("foundations.internvl.revision", "f" * 40), f"OpenGVLab/InternVL3-1B-hf at {'f' * 40}"),
        (_set("foundations.offline", "${PERCEPTIO_MODELS}"), "PERCEPTIO_MODELS is not set"),
        (_set("depth_codebook.pretrained", "nowhere"), "nowhere"),
        (_set("sources.root", "${NO_SUCH_VARIABLE}"), "NO_SUCH_VARIABLE is not set"),
        (_dataset("coco", images="coco/val2017"), "coco/val2017"),
        (_dataset("aurora", images="aurora/pictures"), "below aurora/pictures"),
        (_dataset("psg", path="GranDf/annotations/val/OpenPsgGCG_val.json"), "OpenPsgGCG_val.json"),
        (_benchmark("refcoco_testa", images="coco/train2015"), "coco/train2015"),
        (_benchmark("scienceqa", path="scienceqa/data"), "scienceqa/data"),
        (_benchmark("hardblink", path="hardblink/images"), "hardblink/images"),
    ],
)
@pytest.mark.usefixtures("road")
def test_what_the_data_and_the_hub_tell_is_refused_before_the_first_stage(change: Callable[[Values], None], told: str) -> None:
    broken(change)
    assert any(told in sentence for sentence in faults(load_profile("broken"))), list(faults(load_profile("broken")))


def test_a_part_of_a_model_that_is_not_on_the_hub_is_named(road: Hub) -> None:
    """As where a repository was emptied, or keeps its weights in another form."""
    profile: Profile = load_profile("perceptio-1b")
    del road.files["OpenGVLab/InternVL3-1B-hf"]["model-00001-of-00002.safetensors"]
    (sentence,) = faults(profile)
    assert "foundations.internvl: OpenGVLab/InternVL3-1B-hf at 014c" in sentence
    assert sentence.endswith("the hub has no *.safetensors there; it has config.json")
