"""Variants side by side, without DVC: what is shared is made once, what fails is told, what is there is kept."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml

from fake_pipeline import FakePipeline, fake_pipeline

COMMAND = (sys.executable, "-m", "benchmarks.study.side_by_side")
REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = ["sources", "foundations", "teacher_depth", "depth_codebook", "joint_shards"]


@pytest.fixture
def pipeline(tmp_path: Path) -> FakePipeline:
    shutil.copytree(REPOSITORY / "benchmarks" / "study", tmp_path / "benchmarks" / "study")
    return fake_pipeline(tmp_path)


def test_shared_stages_run_once_and_every_variant_is_trained_and_scored(pipeline: FakePipeline) -> None:
    said = pipeline.run(*COMMAND, "mini:all", "--at-once", "2")
    ran = pipeline.ran()
    assert ran[:5] == SHARED
    assert sorted(ran[5:]) == ["cotrain@control", "cotrain@full", "evaluate@control", "evaluate@full"]
    for variant in ("full", "control"):
        assert ran.index(f"cotrain@{variant}") < ran.index(f"evaluate@{variant}")
        assert (pipeline.root / "artifacts/mini/evaluate" / variant / "metrics.json").is_file()
    assert "mini.evaluate.control: done" in said
    assert "mini.sources: kept" in pipeline.run(*COMMAND, "mini:full")
    assert pipeline.ran() == []


def test_a_profile_takes_over_what_an_earlier_one_makes_with_equal_parameters(pipeline: FakePipeline) -> None:
    other = yaml.safe_load((pipeline.root / "profiles" / "mini.yaml").read_text())
    other["depth_codebook"]["knob"] = 32
    (pipeline.root / "profiles" / "k32.yaml").write_text(yaml.safe_dump(other))
    pipeline.run(*COMMAND, "mini:full", "k32:full")
    ran = pipeline.ran()
    assert [ran.count(stage) for stage in SHARED] == [1, 1, 1, 2, 2]
    images = [pipeline.root / "artifacts" / name / "sources/images.parquet" for name in ("mini", "k32")]
    assert images[0].read_text() == images[1].read_text()
    assert images[0].samefile(images[1])
    knobs = [
        json.loads((pipeline.root / "artifacts" / name / "depth_codebook/config.json").read_text()) for name in ("mini", "k32")
    ]
    assert [values["knob"] for values in knobs] == [1, 32]


def test_a_failure_is_told_and_the_others_go_on(pipeline: FakePipeline) -> None:
    pipeline.behave(evaluate="fail")
    said = pipeline.run(*COMMAND, "mini:full,control", expect=1)
    assert said.count("evaluate: no space left for jokes") == 2
    assert sorted(pipeline.ran()[5:]) == ["cotrain@control", "cotrain@full", "evaluate@control", "evaluate@full"]
    pipeline.behave(sources="fail")
    (pipeline.root / "artifacts").rename(pipeline.root / "before")
    assert "exit 1" in pipeline.run(*COMMAND, "mini:full", expect=1)
    assert pipeline.ran() == ["sources"]


def test_what_still_runs_at_the_end_of_the_time_is_ended(pipeline: FakePipeline) -> None:
    pipeline.run(*COMMAND, "mini:full")
    pipeline.ran()
    pipeline.behave(cotrain="sleep")
    start = time.monotonic()
    said = pipeline.run(*COMMAND, "mini:full,control", "--seconds", "4", expect=1)
    assert time.monotonic() - start < 60
    assert "mini.cotrain.control:\n" in said
    assert "ended: no time was left" in said
    assert pipeline.ran() == ["cotrain@control"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mini:nonesuch",), "variants has no 'nonesuch'; allowed are control, full"),
        (("nonesuch:full",), "there is no profile"),
        (("mini:full", "--at-once", "0"), "allowed is 1 or more"),
        (("mini:full", "mini:control"), "profile mini is named twice"),
    ],
)
def test_what_cannot_be_run_is_refused(pipeline: FakePipeline, arguments: tuple[str, ...], message: str) -> None:
    assert message in pipeline.run(*COMMAND, *arguments, expect=2)
    assert pipeline.ran() == []
