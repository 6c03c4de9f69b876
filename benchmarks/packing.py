"""Useful tokens a second, packed rows against a padded batch.

``python -m benchmarks.packing`` (after ``make demo``): mini's own batches. ``python -m benchmarks.packing real``: samples as
long as those of the real mix (`benchmarks.real_mix`) at the shape of Perceptio-1B, in batches of several sizes, of which two
samples is what a profile of the paper's sizes puts into a row; on a CPU with `--layers` of the 24 layers.

All ways see the same samples, in turn: forward and backward of InternVL with adapters, as co-training runs it, vision tower
included, to the mean cross-entropy of the supervised tokens. "Padded" is the usual collate: right-padded rows, an attention
mask, `transformers`' sdpa and its loss (``labels=``), which has logits at every place. "Padded, lean" has them at the
supervised places, as "packed" has: what is left between these two is padding and attention. On CPUs that compute in bf16,
packed attention runs in float32, which is the faster there; `transformers` leaves it in bf16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.attention import now
from benchmarks.full_size import build, published
from benchmarks.real_mix import TILE_TOKENS, Length, draw_lengths
from perceptio_core.grammar import Role
from perceptio_core.model.adapters import add_adapters
from perceptio_core.model.assembly import assemble
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.losses import predict
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.packed_attention import PACKED, packed_places
from perceptio_core.params.profile import load_profile
from perceptio_core.segmentation.sam2 import mini_config
from perceptio_core.training.precision import detect_precision

ARTIFACTS = Path("artifacts/mini")
REAL = "perceptio-1b"


def main() -> None:
    """Print tokens a second of every way, packed against both padded ones, and how much of the padded batches is padding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mix", nargs="?", choices=("mini", "real"), default="mini")
    parser.add_argument("--batches", type=int, default=20, help="of each size")
    parser.add_argument("--samples", type=int, nargs="*", default=[2, 8, 16], help="of a batch of the real mix")
    parser.add_argument("--layers", type=int, default=24, help="of the language model and of the vision tower, of the real mix")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no batch begins")
    parser.add_argument("--out", type=Path, help="a JSON file for the same figures")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + arguments.budget
    results = []
    if arguments.mix == "mini":
        model, batches = _mini(arguments.batches + 1, device=device)
        results.append(compare(model, batches, device=device, deadline=deadline))
        _say("mini", results[-1])
        _keep(results, path=arguments.out)
    else:
        model = _real_model(layers=arguments.layers, device=device)
        mixture = load_profile(REAL).variant("full").mixture.weights
        for samples in arguments.samples:
            lengths = draw_lengths(mixture, count=samples * (arguments.batches + 1), seed=samples)
            rows = [lengths[start : start + samples] for start in range(0, len(lengths), samples)]
            made = (real_batch(row, model=model, seed=number) for number, row in enumerate(rows))
            results.append({"samples": samples} | compare(model, made, device=device, deadline=deadline))
            _say(f"{samples} samples", results[-1])
            _keep(results, path=arguments.out)


def _keep(results: Sequence[dict[str, Any]], *, path: Path | None) -> None:
    """After each size, so that a run that is cut off leaves what it found."""
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _say(name: str, result: dict[str, Any]) -> None:
    if "ratio" not in result:
        print(f"{name}: no time left", flush=True)
        return
    for way, (label, _, _) in WAYS.items():
        tokens, milliseconds = result[f"{way}_tokens_per_second"], result[f"{way}_milliseconds"]
        print(f"{name}, {label}: {tokens:8.0f} useful tokens/s, median {milliseconds:.0f} ms a batch")
    print(f"{name}, packed against padded: {result['ratio']:.2f}; against padded, lean: {result['ratio_lean']:.2f}")
    print(f"{name}: {100 * result['padding']:.0f} % of the padded batches is padding")
    print(f"{name}: the losses differ by {result['loss_difference']:.1e} at most", flush=True)


def compare(
    model: PerceptioForConditionalGeneration, batches: Iterable[PerceptioBatch], *, device: torch.device, deadline: float
) -> dict[str, Any]:
    """All ways over the same batches, the first of which is a warm-up; figures of those begun before the deadline.

    `ratio` and `ratio_lean` are medians over the batches of padded time over packed time, `padding` the share of the padded
    batches, `loss_difference` the largest between any way's loss and the packed one's, in nats: rounding, and dropout's draws
    where adapters have some.
    """
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    useful = padding = 0
    difference = 0.0
    for number, one in enumerate(batches):
        if time.monotonic() > deadline:
            break
        batch = one.to(device)
        losses = {}
        names = list(WAYS)
        for name in names[number % len(names) :] + names[: number % len(names)]:  # none is always the first
            _, attention, run = WAYS[name]
            model.vlm.set_attn_implementation(attention)
            started = now(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=detect_precision() == "bf16"):
                loss = run(model, batch)
                loss.backward()
            taken = now(device) - started
            losses[name] = float(loss.detach())
            model.zero_grad()
            if number:
                seconds[name].append(taken)
        difference = max(difference, *(abs(loss - losses["packed"]) for loss in losses.values()))
        if number:
            useful += sum(batch.lengths)
            padding += max(batch.lengths) * len(batch.lengths) - sum(batch.lengths)
    if not useful:
        return {}
    result: dict[str, Any] = {"batches": len(seconds["padded"])}
    for name, taken_by in seconds.items():
        result[f"{name}_tokens_per_second"] = useful / sum(taken_by)
        result[f"{name}_milliseconds"] = 1000 * statistics.median(taken_by)
    for figure, way in (("ratio", "padded"), ("ratio_lean", "lean")):
        result[figure] = statistics.median(
            padded / packed for padded, packed in zip(seconds[way], seconds["packed"], strict=True)
        )
    return result | {"padding": padding / (useful + padding), "loss_difference": difference}


def _mini(count: int, *, device: torch.device) -> tuple[PerceptioForConditionalGeneration, Iterator[PerceptioBatch]]:
    # Not above: it brings the curves' library along, which a machine that measures the real mix need not have.
    from perceptio_core.training.joint_batches import joint_batches

    params = load_profile("mini").variant("full")
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
        mixture=params.mixture.weights,
        batch_size=params.batch_size,
        validate=False,
        seed=params.seed,
    )
    return model, (batches.train(step, 0, 1) for step in range(count))


def _real_model(*, layers: int, device: torch.device) -> PerceptioForConditionalGeneration:
    """Perceptio-1B with so many layers, gradient checkpointing as its profile has it, and a small SAM2, which is not run."""
    subject = published(REAL)
    subject.vlm.text_config.num_hidden_layers = min(layers, subject.vlm.text_config.num_hidden_layers)
    subject.vlm.text_config.layer_types = subject.vlm.text_config.layer_types[: subject.vlm.text_config.num_hidden_layers]
    subject.vlm.vision_config.num_hidden_layers = min(layers, subject.vlm.vision_config.num_hidden_layers)
    model, _, _ = build(replace(subject, sam2=mini_config()), device=device, bf16=device.type == "cuda")
    model.checkpoint_layers(subject.cotrain.gradient_checkpointing)
    return model


def real_batch(
    lengths: Sequence[Length], *, model: PerceptioForConditionalGeneration, seed: int, device: str = "cpu"
) -> PerceptioBatch:
    """A row of samples this long: image tokens first, then meaningless text; noise for pixels.

    Args:
        lengths: of the samples.
        model: that the row is for.
        seed: of text and noise.
        device: of the pixels; on "meta" they have a shape only.
    """
    config = model.vlm.config
    draw = torch.Generator().manual_seed(seed)
    side = config.vision_config.image_size
    rows, roles = [], []
    for length in lengths:
        image = torch.full((length.tiles * TILE_TOKENS,), config.image_token_id)
        text = torch.randint(
            config.image_token_id + 1, config.image_token_id + 200, (length.tokens - len(image),), generator=draw
        )
        rows.append(torch.cat([image, text]))
        roles += [int(Role.PROMPT)] * (length.tokens - length.supervised) + [int(Role.ANSWER)] * length.supervised
    pixels = torch.empty(sum(length.tiles for length in lengths), 3, *side, device=device)
    if device != "meta":
        pixels.normal_(generator=draw)
    return PerceptioBatch(
        keys=tuple(map(str, range(len(lengths)))),
        lengths=tuple(length.tokens for length in lengths),
        input_ids_T=torch.cat(rows),
        positions_T=torch.cat([torch.arange(len(row)) for row in rows]),
        roles_T=torch.tensor(roles),
        pixels_PCHW=pixels,
        sam_pixels_SCHW=torch.empty(0, 3, 1, 1),
        masks_M=(),
        mask_image_M=torch.empty(0, dtype=torch.int64),
    )


def _padded(model: PerceptioForConditionalGeneration, batch: PerceptioBatch) -> Tensor:
    labels_T = batch.input_ids_T.where(batch.roles_T != Role.PROMPT, -100)
    output = model.vlm(**_rows(batch), labels=pad_sequence(list(labels_T.split(batch.lengths)), True, -100))
    loss: Tensor = output.loss
    return loss


def _lean(model: PerceptioForConditionalGeneration, batch: PerceptioBatch) -> Tensor:
    rows = _rows(batch)
    return _loss(model, batch, model.vlm.model(**rows).last_hidden_state[rows["attention_mask"] > 0])


def _packed(model: PerceptioForConditionalGeneration, batch: PerceptioBatch) -> Tensor:
    output = model.vlm.model(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.positions_T[None],
        pixel_values=batch.pixels_PCHW,
        use_cache=False,
        **packed_places(batch.lengths, device=batch.input_ids_T.device),
    )
    return _loss(model, batch, output.last_hidden_state[0])


def _rows(batch: PerceptioBatch) -> dict[str, Any]:
    """What the usual collate hands over."""
    ids = batch.input_ids_T.split(batch.lengths)
    return {
        "input_ids": pad_sequence(list(ids), batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "pixel_values": batch.pixels_PCHW,
        "use_cache": False,
    }


def _loss(model: PerceptioForConditionalGeneration, batch: PerceptioBatch, hidden_TD: Tensor) -> Tensor:
    found = predict(
        hidden_TD=hidden_TD,
        head=model.vlm.get_output_embeddings(),
        input_ids_T=batch.input_ids_T,
        positions_T=batch.positions_T,
        roles_T=batch.roles_T,
    )
    return F.cross_entropy(found.logits_PV, found.targets_P)


WAYS: dict[str, tuple[str, str, Callable[[PerceptioForConditionalGeneration, PerceptioBatch], Tensor]]] = {
    "padded": ("padded", "sdpa", _padded),
    "lean": ("padded, lean", "sdpa", _lean),
    "packed": ("packed", PACKED, _packed),
}
"""Label, attention and what makes the loss, of each way."""


if __name__ == "__main__":
    main()
