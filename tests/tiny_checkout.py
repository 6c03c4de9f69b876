"""A checkout with a tiny Perceptio's data: everything that the stage `cotrain` reads, and a profile `tiny` to run it by."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from entries import entry
from fake_pipeline import environment
from parameters import given, values_of
from perceptio_core.data.records import Point
from perceptio_core.data.rle import encode
from perceptio_core.data.shards.entry import Annotation
from perceptio_core.data.shards.tars import write_index, write_shard
from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.params.foundations import FoundationsParams
from perceptio_core.training.curve_files import read_curve
from stages import cotrain
from stages.cotrain import processes_here
from tiny import LOSS_WEIGHTS, tiny_foundations

REPOSITORY = Path(__file__).resolve().parent.parent
OF_THIS_REPOSITORY = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
"""Environment of commands in such a checkout: this repository's modules, one thread for each process."""
MIXTURE = {"referring": 0.4, "conversation": 0.2, "marker": 0.3, "depth_map": 0.1}
TASKS = tuple(MIXTURE)
VALUES: dict[str, Any] = {
    "steps": 6,
    "batch_size": 8,
    "processes": 1,
    "accumulation": 1,
    "learning_rates": dict.fromkeys(("adapters", "added_rows", "projector", "vision_tower", "prompt", "mask_decoder"), 1e-3),
    "vision_start": 0.2,
    "warmup": 0.1,
    "floor": 0.0,
    "weight_decay": 0.05,
    "beta2": 0.999,
    "clip": 1.0,
    "loss_weights": LOSS_WEIGHTS,
    "spans": {"segmentation": True, "depth": True},
    "order": ["segmentation", "depth"],
    "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
    "train_vision_tower": True,
    "max_tiles": 1,
    "mixture": MIXTURE,
    "checkpoint_every": 2,
    "validate_every": 3,
    "validation_batches": 2,
    "num_workers": 2,
    "seed": 0,
}


def tiny_checkout(root: Path, **overrides: Any) -> Path:
    """Write ``artifacts/tiny/``, and a ``params.yaml`` with `overrides` of `VALUES`, below `root`; returns it.

    The tiny InternVL's tied embedding is scaled up to rows of length 2: LoRA leaves the rows of text alone, and at the initial
    0.02 even a perfect hidden state could not lower the loss by more than a nat.
    """
    made = root / "artifacts" / "tiny"
    made.mkdir(parents=True)
    foundations, codebook = tiny_foundations(made)
    weights = load_file(foundations / "internvl/model.safetensors")
    (embedding,) = [name for name in weights if name.endswith("embed_tokens.weight")]
    weights[embedding] = 2 * torch.nn.functional.normalize(weights[embedding], dim=1)
    save_file(weights, foundations / "internvl/model.safetensors", metadata={"format": "pt"})
    codebook.rename(made / "depth_codebook")
    write_shards(made / "joint_shards")
    values = {"profile": "tiny", **values_of("smoke"), "cotrain": VALUES | overrides, "variants": {"full": {}}}
    (root / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return root


def params(**overrides: Any) -> CotrainParams:
    """`VALUES`, but for the overrides."""
    return CotrainParams.from_mapping(VALUES | overrides, where="test: cotrain")


def run_stage(artifacts: Path, monkeypatch: pytest.MonkeyPatch, *, variant: str, chosen: CotrainParams) -> Path:
    """Run `cotrain` in this process, in such a checkout; the folder that it has made."""
    monkeypatch.chdir(artifacts)
    monkeypatch.setattr(sys, "argv", ["cotrain", "--variant", variant])
    values = given("tiny", variant=chosen, foundations=FoundationsParams(bundled="foundations/tiny"))
    monkeypatch.setattr(cotrain, "read_values", lambda _: values)
    cotrain.main()
    return artifacts / "artifacts" / "tiny" / "cotrain" / variant


def train_here(checkout: Path) -> None:
    """Run its `cotrain` to the end as two ranks on this machine."""
    command = [sys.executable, *processes_here(2), "-m", "stages.cotrain"]
    subprocess.run(command, cwd=checkout, env=environment() | OF_THIS_REPOSITORY, check=True, capture_output=True)


def assert_same_training(one: Path, two: Path) -> None:
    """Two checkouts' trainings on two ranks have the same curves and weights, to the bit."""
    made = [checkout / "artifacts/tiny/cotrain/full" for checkout in (one, two)]
    for curve in ("train/total", "train/seg_dice", "train/reconstruction", "train/gradient_norm", "val/total"):
        (steps, expected), (seen, values) = (read_curve(out / f"curves/plots/metrics/{curve}.tsv") for out in made)
        assert seen == steps
        assert values == expected, curve
    weights = [(out / "checkpoint/model.safetensors").read_bytes() for out in made]
    assert weights[0] == weights[1], "two addends have the same sum in either order"


def write_shards(
    folder: Path,
    *,
    per_task: int = 6,
    sizes: Sequence[tuple[int, int]] = ((40, 48),),
    marker_turns: Sequence[tuple[str, str]] = (("Which point?", "(A)"),),
) -> None:
    """Shards of noise; the pictures of each task have the `sizes` (height, width) in turn, those marked the `marker_turns`."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    parts = []
    for split in ("train", "val"):
        entries = []
        for number in range(per_task * len(TASKS)):
            task = TASKS[number % len(TASKS)]
            height, width = sizes[number // len(TASKS) % len(sizes)]
            picture = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
            turns = {
                "referring": [("Please segment the ball in this image.", "Sure, here it is.")],
                "conversation": [("Which point?", "(A)")],
                "marker": list(marker_turns),
                "depth_map": [("Depth?", "")],
            }
            said = Annotation(
                record_id=f"{split}/{number}",
                task=task,
                source="toy",
                turns=turns[task],
                masks=[encode(draw.random((height, width)) > 0.5)] if task == "referring" else [],
                mask_turns=[0] if task == "referring" else [],
                points=[Point("A", 1, 1), Point("B", width - 1, height - 1)] if task == "marker" else [],
            )
            codes = [int(code) for code in draw.integers(0, 6, 4)]
            entries.append(entry(picture, said, image_key=f"toy/{number}", depth_codes=codes))
        parts.append(write_shard(folder, name=f"{split}-00000", split=split, entries=entries, quarantine=[], records={}))
    write_index(folder, parts, quarantine=[], manifest={}, about={})
