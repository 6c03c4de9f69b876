"""Stage `joint_shards`: image, masks, texts and depth codes joined by key into WebDataset tars."""

import json
import logging
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import torch

from perceptio_core.data.manifest.manifest import IMAGES, QUARANTINE, RECORDS, data_root, read_quarantine
from perceptio_core.data.shards.joint import ShardMaker
from perceptio_core.data.shards.plan import Plan, write_plan
from perceptio_core.data.shards.tars import ShardPart, load_part, save_part, write_index
from perceptio_core.data.workers import as_they_end, cores
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import read_values
from perceptio_core.progress import amount
from stages.common import StagePaths, fingerprint, stage_arguments, write_metrics
from stages.sharded import SharedWork

DESCRIPTION = """Join images, masks, texts and depth codes by image key into training shards.

Reads   artifacts/<profile>/sources (manifest), teacher_depth (depth maps), depth_codebook (codebook); the images below the
        data root; the section `joint_shards`.
Does    encodes every depth map into codes, makes depth-order questions from the depth maps (points circled on the image,
        no image-plane short cut better than chance), and writes every picture once, with all that is said about it. The
        tars are the same bytes whenever the inputs are. A killed run goes on with the shards that are missing.
Writes  artifacts/<profile>/joint_shards/
          train-00000.tar ..., val-00000.tar ...   <key>.jpg|png and <key>.json of each picture, readable by webdataset
          samples.parquet                          where each training sample lies, for random access
          index.json                               schema version, shards with counts, sizes and sha256; per split, task and
                                                   data set the samples, the records in them, and the records that were
                                                   dropped by reason
          quarantine.jsonl                         {file, reason} for every image and record that was left out
          metrics.json                             counts; bytes of the tars, and of the pictures and annotations in them
"""

_maker: ShardMaker
_plan: Plan
_folders: tuple[Path, Path]


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    values = read_values(arguments.params)
    params, paths = values.section("joint_shards", JointShardsParams), StagePaths(values.profile)
    sources, depth, codebook = paths.made("sources"), paths.made("teacher_depth"), paths.made("depth_codebook")
    root = data_root(values.section("sources", SourcesParams), sources)
    manifest = [sources / IMAGES, sources / RECORDS, sources / "metrics.json"]
    # The index stands for the depth maps, the weights for the codebook: each changes with what it stands for.
    key = fingerprint(
        params, str(root), *manifest, depth / "index.parquet", codebook / "config.json", codebook / "model.safetensors"
    )
    work = SharedWork.open(paths, "joint_shards", key)
    if work is None:
        return
    with work:
        folder = work.folder / "plan"
        work.once("plan", lambda: write_plan(folder, sources=sources, params=params), finished=folder.is_dir)
        plan = Plan(folder, params=params)

        def make(names: Iterator[str]) -> Iterator[None]:
            start = (root, depth, codebook, params, folder, work.parts, work.out)
            workers = min(params.workers or cores(), max(1, len(plan.shards)))
            for name in as_they_end(_make, names, workers=workers, start=_start, arguments=start):
                yield from repeat(None, plan.shards[name])

        def assemble() -> None:
            facts = DepthCodebook.from_pretrained(codebook)
            about = {"num_codes": facts.num_codes, "depth_tokens": facts.grid**2}
            counts = write_index(
                work.out,
                (load_part(work.parts / f"{name}.json") for name in plan.shards),
                quarantine=read_quarantine(sources / QUARANTINE),
                manifest=json.loads((sources / "metrics.json").read_text(encoding="utf-8"))["data"],
                about=about,
            )
            write_metrics(work.out / "metrics.json", counts)
            log = logging.getLogger("joint_shards")
            log.info(", ".join(f"{name} {count}" for name, count in counts.items() if not name.startswith("shard_")))
            inside = f"{amount(counts['picture_bytes'])} of pictures and {amount(counts['annotation_bytes'])} of annotations"
            log.info("%s of shards for %s: %.3f times", amount(counts["shard_bytes"]), inside, counts["shard_overhead"])

        work.make(plan.shards, make, label="joint shards")
        work.publish(assemble)


def _start(root: Path, depth: Path, codebook: Path, params: JointShardsParams, plan: Path, parts: Path, out: Path) -> None:
    """Open in this process what the shards are made from."""
    global _maker, _plan, _folders  # a process pool starts its workers through module state
    torch.set_num_threads(1)
    reasons = {row.file: row.reason for row in read_quarantine(depth / QUARANTINE)}
    _maker = ShardMaker(root=root, depth=depth, codebook=codebook, params=params, reasons=reasons)
    _plan = Plan(plan, params=params)
    _folders = parts, out


def _make(name: str) -> str:
    parts, out = _folders
    part: ShardPart = _maker.make(_plan.job(name), folder=out)
    save_part(parts / f"{name}.json", part)
    return name


if __name__ == "__main__":
    main()
