"""What of a profile can be validated without its data: ``make check-profile PROFILE=perceptio-8b``.

Every key and value, and each variant; that the test pictures of every benchmark are kept out of training; that everything it
reads has a place where it is to be had. For a base of known architecture the model is put together on the meta device by the
code of `cotrain`, and a step's memory is estimated for a picture of 640 x 480 (13 tiles) with five expressions a sample.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from benchmarks.architectures import BASES
from benchmarks.on_meta import assemble_on_meta
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.params import Profile, load_profile
from perceptio_core.segmentation.sam2 import OFFICIAL
from perceptio_core.training.memory_estimate import Computation, MemoryEstimate, StepShape, estimate_memory
from pipeline.data_places import places

TOKENS, SUPERVISED, TILES, MASKS = 3700, 250, 13, 5
"""Of a sample."""


def main() -> None:
    """Print what was found; exits with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", metavar="PROFILE", help="profiles/PROFILE.yaml")
    name = parser.parse_args().profile
    try:
        profile = load_profile(name)
    except ValueError as error:
        sys.exit(f"check-profile: {error}")
    print(f"profiles/{name}.yaml: every key and value is allowed; variants: {', '.join(profile.variants)}")
    faults = list(inconsistencies(profile))
    print(
        "\n".join(faults)
        if faults
        else f"its parts fit together; it reads {len(places(profile))} places (perceptio data check)"
    )
    base = profile.foundations.internvl
    architecture = next((known for known in BASES.values() if base is not None and known.repo == base.repo), None)
    if architecture is None:
        print(f"no table of memory: the model is put together for {', '.join(known.repo for known in BASES.values())} alone")
    else:
        model, _, groups = assemble_on_meta(architecture, profile)
        total = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for group in groups.values() for parameter in group.values())
        print(f"model: {total / 1e9:.2f} billion parameters, {trained / 1e6:.0f} million of them trained")
        print(f"memory of a step in GiB, an estimate, on {profile.cotrain.processes} GPUs\n{memory(model, profile).table()}")
    sys.exit(1 if faults else 0)


def inconsistencies(profile: Profile) -> Iterator[str]:
    """What is allowed key by key and yet cannot be meant."""
    sam2 = profile.foundations.sam2
    if sam2 is not None and sam2.config is not None and sam2.config not in OFFICIAL:
        yield f"foundations.sam2.config: {sam2.config!r} is no published model; allowed are {', '.join(OFFICIAL)}"
    if profile.sources.render is not None:
        return
    kept_out = profile.sources.held_out
    for benchmark in profile.evaluate.benchmarks:
        if benchmark.validation_share is not None:
            continue  # the data sets leave these pictures out of training by the same share
        if not any(place == benchmark.path or place.startswith(benchmark.path.partition("/")[0] + "/") for place in kept_out):
            yield f"sources.held_out: names no pictures of the benchmark {benchmark.label} ({benchmark.path})"
    for split in sorted({"train", "val"} - {dataset.split for dataset in profile.sources.datasets}):
        yield f"sources.datasets: none has split {split}; the depth codebook is trained on train and tested on val"
    drawn = {task for task, weight in profile.cotrain.mixture.weights.items() if weight}
    kinds = {dataset.kind for dataset in profile.sources.datasets if dataset.split == "train"}
    without_masks = {"llava", "aurora", "vg", "questions"}
    if "conversation" in drawn and not kinds & without_masks:
        yield "cotrain.mixture.conversation: is drawn, but no data set has conversations"
    if "referring" in drawn and not kinds - (without_masks - {"questions"}):  # a table may have a column of masks
        yield "cotrain.mixture.referring: is drawn, but no data set has masks"


def memory(model: PerceptioForConditionalGeneration, profile: Profile) -> MemoryEstimate:
    """Of one of the profile's processes at the peak of a step."""
    params = profile.cotrain
    samples = max(1, params.batch_size // (params.processes * params.accumulation))
    shape = StepShape(
        tokens=samples * TOKENS,
        supervised=samples * SUPERVISED,
        code_tokens=samples * 101,
        tiles=samples * TILES,
        sam_images=samples,
        masks=samples * MASKS,
    )
    computation = Computation(
        bf16=True,
        cpu=False,
        checkpointing=params.gradient_checkpointing,
        accumulation=params.accumulation,
        ranks=params.processes,
        sharded=params.sharding == "full" and params.processes > 1,
    )
    return estimate_memory(model, shape=shape, computation=computation)


if __name__ == "__main__":
    main()
