"""How many times the operations a padded batch takes, against the packed row of the same samples, at the paper's sizes.

``python -m benchmarks.padding``: counted by the formula of `benchmarks.flops`, on any machine, for micro-batches of samples as
long as those of the real mix (`benchmarks.real_mix`). Padded to the longest, a batch

- has its linear layers compute for B x longest tokens, the language model's alone: tiles are not padded;
- has its attention compute the whole square of each row, for `transformers`' sdpa takes a mask where there is padding;
- with `transformers`' own loss (``labels=``) has logits at all places, where `perceptio_core.model.losses` has them at the
  supervised ones.

SAM2 is left out on both sides, and what gradient checkpointing computes again. Operations are not time: this says what packing
can save, `benchmarks.packing` what it does save on a machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.architectures import BASES
from benchmarks.flops import step_flops
from benchmarks.on_meta import assemble_on_meta
from benchmarks.packing import real_batch
from benchmarks.real_mix import Length, draw_lengths
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.params.profile import load_profile


def main() -> None:
    """Print a table with a row a size of the micro-batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="*", default=[2, 4, 8, 16], help="of a micro-batch")
    parser.add_argument("--batches", type=int, default=200, help="of each size")
    arguments = parser.parse_args()
    models = {name: assemble_on_meta(base, load_profile(name))[0] for name, base in BASES.items()}
    mixture = load_profile(next(iter(BASES))).variant("full").mixture.model_dump()
    print(f"| samples | tokens | {' | '.join(f'{name} | with logits everywhere' for name in models)} |")
    print("| ---: " * (2 + 2 * len(models)) + "|")
    for samples in arguments.samples:
        lengths = draw_lengths(mixture, count=samples * arguments.batches, seed=samples)
        rows = [lengths[start : start + samples] for start in range(0, len(lengths), samples)]
        tokens = sum(samples * max(length.tokens for length in row) for row in rows) / sum(length.tokens for length in lengths)
        cells = [f"{ratio:.2f}" for model in models.values() for ratio in ratios(model, rows)]
        print(f"| {samples} | {tokens:.2f} | {' | '.join(cells)} |", flush=True)


def ratios(model: PerceptioForConditionalGeneration, rows: Sequence[Sequence[Length]]) -> tuple[float, float]:
    """Operations of the padded batches over those of the packed rows, with the head at supervised places, and everywhere."""
    packed = padded = everywhere = 0.0
    for row in rows:
        batch = real_batch(row, model=model, seed=0, device="meta")
        packed += sum(step_flops(model, batch).values())
        padded += sum(padded_flops(model, batch, everywhere=False).values())
        everywhere += sum(padded_flops(model, batch, everywhere=True).values())
    return padded / packed, everywhere / packed


def padded_flops(model: PerceptioForConditionalGeneration, batch: PerceptioBatch, *, everywhere: bool) -> Mapping[str, float]:
    """Operations of a micro-batch that is padded, as `step_flops` has them of the packed one.

    Args:
        model: with its adapters.
        batch: the micro-batch, packed.
        everywhere: whether the output head is applied at all places, padding included.
    """
    parts = dict(step_flops(model, batch))
    rows, longest = len(batch.lengths), max(batch.lengths)
    parts["language model"] *= rows * longest / sum(batch.lengths)
    parts["attention"] *= 2 * rows * longest**2 / sum(length**2 for length in batch.lengths)
    if everywhere:
        parts["output head"] = 4.0 * rows * longest * model.vlm.get_output_embeddings().weight.numel()
    return parts


if __name__ == "__main__":
    main()
