"""What of a profile can be validated without its data: ``make check-profile PROFILE=perceptio-8b``.

Every key and value, and each variant; that each benchmark asks the variants for what they write, of a file and a split that
there are; that each task that is drawn has samples; that the test pictures of every benchmark are kept out of training; that
everything it reads has a place where it is to be had. For a base of known architecture the model is put together on the meta
device by the code of `cotrain`, and a step's memory is estimated for a picture of 640 x 480 (13 tiles) with five expressions a
sample.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath

from benchmarks.architectures import BASES
from benchmarks.on_meta import assemble_on_meta
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.params.profile import Profile, load_profile
from perceptio_core.report.headline import MAIN
from perceptio_core.segmentation.sam2 import OFFICIAL
from perceptio_core.training.memory_estimate import Computation, MemoryEstimate, StepShape, estimate_memory
from pipeline.data_places import places

TOKENS, SUPERVISED, TILES, MASKS = 3700, 250, 13, 5
"""Of a sample."""
SPLITS = {"unc": ("train", "val", "testA", "testB"), "umd": ("train", "val", "test"), "google": ("train", "val")}
"""Of REFER's references, by their author."""
AUTHORS = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
"""Whose references the published folders have."""
_ENDINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llava", "aurora", "gcg", "panoptic"), (".json",)),
    "questions": (".csv", ".jsonl", ".parquet"),
    **dict.fromkeys(("mmbench", "ai2d"), (".tsv",)),
    "seedbench": (".json", ".tsv"),
}


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
    yield from _variants(profile)
    yield from _mixture(profile)
    if profile.sources.render is not None:
        return
    yield from _files(profile)
    kept_out = profile.sources.held_out
    for benchmark in profile.evaluate.benchmarks:
        if benchmark.validation_share is not None:
            continue  # the data sets leave these pictures out of training by the same share
        folder = benchmark.path.partition("/")[0]
        if not any(place in (benchmark.path, folder) or place.startswith(f"{folder}/") for place in kept_out):
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


def _variants(profile: Profile) -> Iterator[str]:
    """Variants that do not exist, and benchmarks that ask a variant for what it cannot write."""
    if MAIN not in profile.variants:
        yield f"variants: has no {MAIN}, which the report is about"
    for benchmark in profile.evaluate.benchmarks:
        where = f"evaluate.benchmarks: {benchmark.label}"
        for pattern in benchmark.except_variants:
            named = len(profile.variants) > 1 and not set(pattern) & set(
                "*?["
            )  # a pattern may be for another profile's variants
            if named and pattern not in profile.variants:
                yield f"{where}: except_variants names {pattern}; the variants are {', '.join(profile.variants)}"
        asked = [(name, variant) for name, variant in profile.variants.items() if benchmark.is_for(name)]
        if not asked:
            yield f"{where}: is asked of no variant"
        for name, variant in asked:
            masks = benchmark.kind in ("refer", "grefcoco", "reasonseg") or benchmark.segment
            if masks and not variant.spans.segmentation:
                yield f"{where}: asks the variant {name} for masks, which it does not write (except_variants: [{name}])"
            if (benchmark.depth or benchmark.codes != "predicted") and not variant.spans.depth:
                yield f"{where}: asks the variant {name} for depth codes, which it does not write (except_variants: [{name}])"


def _mixture(profile: Profile) -> Iterator[str]:
    """Tasks that are drawn though no sample is made of them."""
    shards = profile.joint_shards
    aurora = any(dataset.kind == "aurora" and dataset.split == "train" for dataset in profile.sources.datasets)
    for name, variant in profile.variants.items():
        weights = variant.mixture.weights
        for task in ("marker", "reading"):
            if weights[task] and not shards.markers_per_image and not aurora:
                yield f"variants.{name}: mixture.{task} is drawn, but joint_shards.markers_per_image is 0"
        if weights["depth_map"] and not shards.depth_map_share and not aurora:
            yield f"variants.{name}: mixture.depth_map is drawn, but joint_shards.depth_map_share is 0"
        nearest = set(variant.markers.points) & set(shards.marker_counts)
        if weights["marker"] and shards.markers_per_image and not nearest and not aurora:
            counts = f"joint_shards.marker_counts has {list(shards.marker_counts)}"
            yield f"variants.{name}: markers.points keeps {list(variant.markers.points)}, and {counts}"


def _files(profile: Profile) -> Iterator[str]:
    """Paths that the readers refuse by their names, and splits that the published files do not have."""
    for dataset in profile.sources.datasets:
        allowed = _ENDINGS.get(dataset.kind, ())
        if allowed and not dataset.path.endswith(allowed):
            yield f"sources.datasets: {dataset.name}: kind {dataset.kind} is a file {', '.join(allowed)}, not {dataset.path}"
        if dataset.kind == "refer":
            yield from _of_author(f"sources.datasets: {dataset.name}", dataset.path, dataset.split_by, dataset.split)
    for benchmark in profile.evaluate.benchmarks:
        where, allowed = f"evaluate.benchmarks: {benchmark.label}", _ENDINGS.get(benchmark.kind, ())
        if allowed and not benchmark.path.endswith(allowed):
            yield f"{where}: kind {benchmark.kind} is a file {', '.join(allowed)}, not {benchmark.path}"
        if benchmark.kind == "refer":
            yield from _of_author(where, benchmark.path, benchmark.split_by, str(benchmark.split))
        if benchmark.kind == "grefcoco" and benchmark.split not in SPLITS["unc"]:
            yield f"{where}: gRefCOCO has the splits {', '.join(SPLITS['unc'])}, not {benchmark.split}"
        if benchmark.kind == "scienceqa" and benchmark.path.endswith(".tsv") and benchmark.split is not None:
            yield f"{where}: a table has one split; split is for the folder alone"
        if benchmark.kind == "scienceqa" and benchmark.split not in (None, "val", "test"):
            yield f"{where}: ScienceQA is scored on val or test, not {benchmark.split}"
    for place in profile.sources.held_out:
        ending = PurePosixPath(place).suffix
        if ending and ending not in (".tsv", ".parquet", ".p"):
            yield f"sources.held_out: {place}: allowed are folders, .tsv, .parquet and REFER's refs(*).p"


def _of_author(where: str, path: str, split_by: str | None, split: str) -> Iterator[str]:
    authors = AUTHORS.get(PurePosixPath(path).name)
    if split_by is None:
        return
    if split_by not in SPLITS or (authors is not None and split_by not in authors):
        yield f"{where}: split_by {split_by}; allowed are {', '.join(authors or SPLITS)}"
    elif split not in SPLITS[split_by]:
        yield f"{where}: the references of {split_by} have the splits {', '.join(SPLITS[split_by])}, not {split}"


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
