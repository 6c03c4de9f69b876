"""Useful tokens a second, packed rows against a padded batch: ``python -m benchmarks.packing`` (after ``make demo``).

Both see the same samples of mini's mixture, in turn: forward and backward of InternVL with adapters, as co-training runs it.
"Padded" is the usual collate: right-padded rows, an attention mask, `transformers`' sdpa. On CPUs that compute in bf16,
packed attention runs in float32, which is the faster there; `transformers` leaves it in bf16.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from perceptio_core.model.adapters import add_adapters
from perceptio_core.model.assembly import assemble
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.packed_attention import PACKED, packed_places
from perceptio_core.params import load_profile
from perceptio_core.training.joint_batches import joint_batches
from perceptio_core.training.precision import detect_precision

ARTIFACTS = Path("artifacts/mini")


def main() -> None:
    """Print tokens a second of both, their ratio, and how much of the padded batches is padding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=20)
    count = parser.parse_args().batches
    params = load_profile("mini").variant("full")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = assemble(
        foundations=ARTIFACTS / "foundations",
        codebook=ARTIFACTS / "depth_codebook",
        order=list(params.order),
        loss_weights=params.loss_weights.model_dump(),
        max_tiles=params.max_tiles,
        seed=params.seed,
    )
    lora = params.lora
    add_adapters(model, rank=lora.r, alpha=lora.alpha, dropout=lora.dropout, train_vision_tower=params.train_vision_tower)
    model.to(device).train()
    batches = joint_batches(
        shards=ARTIFACTS / "joint_shards",
        processor=processor,
        mixture=params.mixture.model_dump(),
        batch_size=params.batch_size,
        validate=False,
        seed=params.seed,
    )
    ways: dict[str, tuple[str, Callable[[PerceptioForConditionalGeneration, PerceptioBatch], Tensor]]] = {
        "padded": ("sdpa", _padded),
        "packed": (PACKED, _packed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    useful = padding = 0
    for step in range(count + 1):
        batch = batches.train(step, 0, 1).to(device)
        for name, (attention, run) in sorted(ways.items(), reverse=step % 2 == 0):  # none is always the first
            model.vlm.set_attn_implementation(attention)
            start = time.perf_counter()
            with torch.autocast(device, torch.bfloat16, enabled=detect_precision() == "bf16"):
                run(model, batch).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            model.zero_grad()
            if step:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
        if step:
            useful += sum(batch.lengths)
            padding += max(batch.lengths) * len(batch.lengths) - sum(batch.lengths)
    for name, taken in seconds.items():
        print(f"{name}: {useful / sum(taken):8.0f} useful tokens/s, median {1000 * statistics.median(taken):.0f} ms a batch")
    ratios = [padded / packed for padded, packed in zip(seconds["padded"], seconds["packed"], strict=True)]
    print(
        f"ratio: {statistics.median(ratios):.2f}; {100 * padding / (useful + padding):.0f} % of the padded batches is padding"
    )


def _padded(model: PerceptioForConditionalGeneration, batch: PerceptioBatch) -> Tensor:
    ids = batch.input_ids_T.split(batch.lengths)
    output = model.vlm.model(
        input_ids=pad_sequence(list(ids), batch_first=True),
        attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        pixel_values=batch.pixels_PCHW,
        use_cache=False,
    )
    return output.last_hidden_state.float().square().mean()


def _packed(model: PerceptioForConditionalGeneration, batch: PerceptioBatch) -> Tensor:
    output = model.vlm.model(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.positions_T[None],
        pixel_values=batch.pixels_PCHW,
        use_cache=False,
        **packed_places(batch.lengths, device=batch.input_ids_T.device),
    )
    return output.last_hidden_state.float().square().mean()


if __name__ == "__main__":
    main()
