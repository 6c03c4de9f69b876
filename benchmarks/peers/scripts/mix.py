"""What both programs that train have in common: a demo's model without perception tokens, and its samples."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from sys import argv

from perceptio_core.model.adapters import add_adapters
from perceptio_core.model.assembly import assemble
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.params.profile import load_profile
from perceptio_core.training.joint_batches import JointBatches, joint_batches
from perceptio_core.training.optimizer import ParameterGroup

VARIANT = "control"
"""Without masks and depth spans: what `transformers`' Trainer can train with its own loss."""

Train = Callable[[PerceptioForConditionalGeneration, list[ParameterGroup], JointBatches, CotrainParams, int, Path], None]


def main(train: Train) -> None:
    """``ARTIFACTS STEPS``: prints seconds, and the tokens of the samples that were trained on."""
    artifacts, steps = Path(argv[1]), int(argv[2])
    params = load_profile(artifacts.name).variant(VARIANT)
    model, processor = assemble(
        foundations=artifacts / "foundations",
        codebook=artifacts / "depth_codebook",
        order=[],
        loss_weights=params.loss_weights.model_dump(),
        max_tiles=params.max_tiles,
        seed=params.seed,
        code_words=params.code_words,
    )
    model.float()
    lora = params.lora
    named = add_adapters(
        model, rank=lora.r, alpha=lora.alpha, dropout=lora.dropout, train_vision_tower=params.train_vision_tower
    )
    rates = params.learning_rates.model_dump()
    groups = [ParameterGroup(name=name, rate=rates[name], parameters=parameters) for name, parameters in named.items()]
    batches = joint_batches(
        shards=artifacts / "joint_shards",
        processor=processor,
        mixture=params.mixture.weights,
        batch_size=params.batch_size,
        validate=False,
        seed=params.seed,
    )
    tokens = sum(sum(batches.train(step, 0, 1).lengths) for step in range(steps))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train(model, groups, batches, params, steps, Path(folder))
        print(json.dumps({"seconds": time.perf_counter() - start, "read": tokens}))
