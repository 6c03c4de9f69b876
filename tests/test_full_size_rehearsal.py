"""The road to a model of one's own, walked whole: ``pytest -m on_request tests/test_full_size_rehearsal.py``.

perceptio-1b in a checkout as it is cloned: random weights in the published layouts from a local hub, every data set and
benchmark of the profile as a handful of rows in its official layout, the command that a person types, killed in `cotrain` and
typed again. Layers, tokens, tiles and pixels are the profile's; about a tenth of the width, or ``PERCEPTIO_REHEARSAL=whole``
for all of it (24 GiB of memory, hours on two cores). Of the profile only `REDUCED` differs: numbers of steps, questions, and
samples at a time, and what the machine has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

import full_layout
from fake_pipeline import as_cloned, environment
from hub_server import TOKEN, hub_server
from published_whole import (
    NARROW,
    PUBLISHED,
    ROWS,
    TOKENS,
    depth_anything_v2_large,
    internvl3_1b,
    narrow_sam2_package,
    sam2_1_large,
)
from survivors import Marked

pytestmark = pytest.mark.on_request
WHOLE = os.environ.get("PERCEPTIO_REHEARSAL") == "whole"
NAME = "perceptio-1b"
PERCEPTIO = (sys.executable, "-m", "pipeline.cli")
REDUCED: dict[str, dict[str, Any]] = {
    "sources": {"workers": 2},
    "teacher_depth": {"workers": 2},
    "depth_codebook": {"steps": 4},
    "joint_shards": {"workers": 2},
    "cotrain": {"steps": 3, "batch_size": 4, "processes": 2, "accumulation": 2, "num_workers": 1, "checkpoint_every": 1},
}
LIMITS = {"hardblink": 2}
"""Questions, pictures or expressions of each benchmark; 1 of the others."""
REPRO = (*PERCEPTIO, "repro", "--profile", NAME, "--variants", "full,control")

FORCED = """
import json, sys
from pathlib import Path
from perceptio_core.data.images import open_image
from perceptio_core.model.inference import Perceptor

model = Perceptor.from_pretrained(sys.argv[1])
(answer,) = model.predict([open_image(Path(sys.argv[2]))], ["Please segment it."], segment=True, depth=True, max_masks=2)
codes, depth = answer.depth_codes, answer.depth_map
print(json.dumps([[list(mask.shape) for mask in answer.masks], len(codes), int(codes.max()), list(depth.shape), answer.raw]))
"""
"""Asks for both spans, which random weights may not write of their own accord."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A checkout in which everything has run, and the environment that it ran in."""
    folder = tmp_path_factory.mktemp("rehearsal")
    sizes = PUBLISHED if WHOLE else NARROW
    with patch.multiple(full_layout, WIDTH=120, HEIGHT=120):  # a tile each; the pictures of LLaVA and SEED-Bench have 13
        data = full_layout.full_layout(folder / "data")
    clone = as_cloned(folder / "checkout", profile=NAME)
    profile = clone / f"profiles/{NAME}.yaml"
    values = reduced(yaml.safe_load(profile.read_text()))
    profile.write_text(yaml.safe_dump(values, sort_keys=False))
    with hub_server(folder / "unused") as hub:
        models = {"internvl": internvl3_1b, "sam2": sam2_1_large, "depth_anything": depth_anything_v2_large}
        for part, files in models.items():
            published = values["foundations"][part]
            hub.files[published["repo"]], hub.heads[published["repo"]] = files(sizes), published["revision"]
        packages = "" if WHOLE else str(narrow_sam2_package(folder / "packages", sizes))
        variables = {
            "PERCEPTIO_DATA": str(data),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "cache"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": packages,
            "OMP_NUM_THREADS": "1",
        }
        told = environment() | variables
        kill_in_cotrain(clone, told)
        ended(clone, told, *REPRO)
        (clone / "run.log").rename(clone / "resumed.log")
        yield clone, told


def reduced(values: dict[str, Any]) -> dict[str, Any]:
    """The profile's values with `REDUCED` and `LIMITS`."""
    for section, changes in REDUCED.items():
        assert changes.keys() <= values[section].keys(), "what is reduced is what the profile says"
        values[section] |= changes
    for benchmark in values["evaluate"]["benchmarks"]:
        benchmark["limit"] = LIMITS.get(benchmark["kind"], 1)
    return values


def kill_in_cotrain(clone: Path, variables: dict[str, str]) -> None:
    """Start the command, kill it and all of its group once a checkpoint is written, and look that nothing lives on."""
    marked = Marked(REPRO, folder=clone, environment=variables)
    while marked.driver.poll() is None and not any((clone / f".work/{NAME}/cotrain").glob("**/step-*")):
        time.sleep(0.2)
    assert marked.driver.poll() is None, f"ended before it could be killed:\n{marked.log.read_text()[-8000:]}"
    marked.kill(group=True)
    assert marked.survivors() == {}
    assert not any((clone / f"artifacts/{NAME}/cotrain").rglob("*.safetensors"))


def ended(clone: Path, variables: dict[str, str], *command: str) -> str:
    """Run a command to its end; what it wrote to stdout. Both streams go to run.log."""
    with (clone / "run.log").open("w") as log:
        done = subprocess.run(command, cwd=clone, env=variables, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        log.write(done.stdout)
    assert done.returncode == 0, (clone / "run.log").read_text()[-8000:]
    return done.stdout


Checkout = tuple[Path, dict[str, str]]


def test_a_kill_costs_a_step_at_most(checkout: Checkout) -> None:
    log = (checkout[0] / "resumed.log").read_text()
    assert re.search(r"resuming after step [12]", log)
    for stage in ("sources", "foundations", "teacher_depth", "depth_codebook", "joint_shards"):
        assert f"Running stage '{stage}'" not in log
    for stage in ("cotrain@full", "cotrain@control", "evaluate@full", "evaluate@control", "report"):
        assert f"'{stage}'" in log


def test_every_benchmark_is_in_the_report_beside_the_control(checkout: Checkout) -> None:
    report = checkout[0] / f"artifacts/{NAME}/report"
    found = {row["name"]: row for row in json.loads((report / "metrics.json").read_text())}
    values = yaml.safe_load((checkout[0] / f"profiles/{NAME}.yaml").read_text())
    for benchmark in values["evaluate"]["benchmarks"]:
        label = benchmark.get("name") or {"seedbench": "seed"}.get(benchmark["kind"], benchmark["kind"])
        mine = [name for name in found if name.startswith(label)]
        assert mine, f"{label} is not among {sorted(found)}"
        if "control" not in benchmark.get("except_variants", []):
            assert [name for name in found if name.startswith(f"control_{label}")], label
    assert all(row["value"] is not None and row["n"] >= 1 for row in found.values())
    page = (report / "report.html").read_text()
    assert "Perceptio-1B" in page
    assert page.count("data:image/") >= 4, "panels and plots"


def test_the_output_head_of_the_base_is_the_checkpoints(checkout: Checkout) -> None:
    """Configurations as published do not say that it is a matrix of its own."""
    below = checkout[0] / f"artifacts/{NAME}"
    base = tensors(below / "foundations/internvl", "lm_head.weight", "embed_tokens.weight")
    trained = tensors(below / "cotrain/full/checkpoint", "lm_head.weight", "embed_tokens.weight")
    for name, old in base.items():
        assert torch.equal(trained[name][:ROWS], old), name
        assert len(trained[name]) == TOKENS + 131
    assert not torch.equal(trained["lm_head.weight"], trained["embed_tokens.weight"])


def tensors(folder: Path, *endings: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint whose names end so, by their endings."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (no mapping)
                found |= {ending: weights.get_tensor(key) for ending in endings if key.endswith(ending)}
    assert found.keys() == set(endings)
    return found


def test_the_checkpoint_answers_in_a_fresh_process_with_masks_and_depth(checkout: Checkout, tmp_path: Path) -> None:
    clone, variables = checkout
    picture = tmp_path / "picture.jpg"
    full_layout.picture("asked", size=(640, 480)).save(picture)
    ask = ("-q", "Please segment the red oval in this image.", "-q", "What is the depth map for the image?")
    lines = ended(clone, variables, *PERCEPTIO, "predict", str(picture), *ask, "--json", "--out", str(tmp_path / "out"))
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["question"] for row in rows] == [ask[1], ask[3]]
    for row in rows:
        files = [*row["masks"], *filter(None, (row["overview"], row["depth"]))]
        assert all(Image.open(clone / file).size == (640, 480) for file in files)
        assert bool(row["masks"]) == ("[SEG]" in row["raw"])
        assert bool(row["depth"]) == ("<depth_start>" in row["raw"])
    checkpoint = clone / f"artifacts/{NAME}/cotrain/full/checkpoint"
    said = ended(clone, variables, sys.executable, "-c", FORCED, str(checkpoint), str(picture))
    masks, codes, highest, depth, raw = json.loads(said.splitlines()[-1])
    assert masks
    assert all(mask == [480, 640] for mask in masks)
    assert (codes, depth) == (100, [320, 320])
    assert highest < 128
    assert raw.startswith("[SEG]"), "segmentation, then depth, then the answer"
    assert raw.index("[SEG]") < raw.index("<depth_start>") < raw.index("<depth_end>")


def test_a_third_run_has_nothing_to_do(checkout: Checkout) -> None:
    assert "Nothing to do" in ended(*checkout, *REPRO)
