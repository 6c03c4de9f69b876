"""Co-training's own loop: packed rows, samples read and made within the time."""

from pathlib import Path

from mix import main

from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.training.joint_batches import JointBatches
from perceptio_core.training.loop import LoopSettings, start_accelerator, train
from perceptio_core.training.optimizer import ParameterGroup


def _train(
    model: PerceptioForConditionalGeneration,
    groups: list[ParameterGroup],
    batches: JointBatches,
    params: CotrainParams,
    steps: int,
    work: Path,
) -> None:
    never = steps + 1
    settings = LoopSettings(
        steps=steps,
        batch_size=params.batch_size,
        accumulation=1,
        warmup=params.warmup,
        floor=params.floor,
        weight_decay=params.weight_decay,
        beta2=params.beta2,
        clip=params.clip,
        checkpoint_every=never,
        validate_every=never,
        validation_batches=0,
        num_workers=0,
        seed=params.seed,
    )
    train(accelerator=start_accelerator(), model=model, groups=groups, batches=batches, settings=settings, work=work)


main(_train)
