"""`transformers`' Trainer on the same samples: padded rows with sdpa, and the model's own loss (``labels=``)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mix import main
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from perceptio_core.grammar import Role
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.params.cotrain import CotrainParams
from perceptio_core.training.joint_batches import JointBatches
from perceptio_core.training.optimizer import ParameterGroup
from perceptio_core.training.precision import detect_precision

IGNORED = -100


class _Samples(IterableDataset[PerceptioBatch]):
    """Sample by sample, as `batches` deals each step to as many parts as it has samples."""

    def __init__(self, batches: JointBatches, *, steps: int, batch_size: int) -> None:
        self._batches, self._steps, self._size = batches, steps, batch_size

    def __iter__(self) -> Iterator[PerceptioBatch]:
        return (self._batches.train(step, part, self._size) for step in range(self._steps) for part in range(self._size))


def _collate(samples: Sequence[PerceptioBatch]) -> dict[str, Tensor]:
    labels = [sample.input_ids_T.where(sample.roles_T != Role.PROMPT, IGNORED) for sample in samples]
    ids = [sample.input_ids_T for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "pixel_values": torch.cat([sample.pixels_PCHW for sample in samples]),
    }


def _train(
    model: PerceptioForConditionalGeneration,
    groups: list[ParameterGroup],
    batches: JointBatches,
    params: CotrainParams,
    steps: int,
    work: Path,
) -> None:
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=params.batch_size,
        max_steps=steps,
        learning_rate=groups[0].rate,
        weight_decay=params.weight_decay,
        max_grad_norm=params.clip,
        bf16=detect_precision() == "bf16",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    model.vlm.set_attn_implementation("sdpa")
    samples = _Samples(batches, steps=steps, batch_size=params.batch_size)
    Trainer(model=model.vlm, args=arguments, train_dataset=samples, data_collator=_collate).train()


main(_train)
