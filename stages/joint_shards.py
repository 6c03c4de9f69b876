"""Stage `joint_shards`: image, masks, texts and depth codes joined by key into WebDataset tars."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from perceptio_core.data.manifest.manifest import DATA, IMAGES, QUARANTINE, RECORDS, data_root, read_quarantine
from perceptio_core.data.shards.joint import ShardMaker
from perceptio_core.data.shards.plan import Plan, write_plan
from perceptio_core.data.shards.tars import ShardPart, load_part, save_part, write_index
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.engine import cores
from perceptio_core.metrics import counted, write_metrics
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.params.sources import SourcesParams
from perceptio_core.params.values import read_values
from perceptio_core.progress import amount
from stages.common import StagePaths, fingerprint, stage_arguments
from stages.shards import ShardWork

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
          metrics.json, summary.json               counts; bytes of the tars, and of the pictures and annotations in them
"""


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    values = read_values(arguments.params)
    params, paths = values.section("joint_shards", JointShardsParams), StagePaths(values.profile)
    sources, depth, codebook = paths.made("sources"), paths.made("teacher_depth"), paths.made("depth_codebook")
    root = data_root(values.section("sources", SourcesParams), sources)
    manifest = [sources / IMAGES, sources / RECORDS, sources / DATA]
    # The index stands for the depth maps, the weights for the codebook: each changes with what it stands for.
    key = fingerprint(
        params, str(root), *manifest, depth / "index.parquet", codebook / "config.json", codebook / "model.safetensors"
    )
    with ShardWork(paths, "joint_shards", key) as work:
        planned = work.folder / "plan"
        if not planned.is_dir():
            write_plan(planned, sources=sources, depth=depth, params=params)
        shards = Plan(planned, params=params).shards
        make = partial(_maker, root, depth, codebook, params, planned, work.out)
        work.make(shards, make, keep=save_part, label="joint shards", workers=params.workers or cores())
        facts = DepthCodebook.from_pretrained(codebook)
        counts = write_index(
            work.out,
            (load_part(work.part(name)) for name in shards),
            quarantine=read_quarantine(sources / QUARANTINE),
            manifest=json.loads((sources / DATA).read_text(encoding="utf-8")),
            about={"num_codes": facts.num_codes, "depth_tokens": facts.grid**2},
        )
        write_metrics(work.out, counted(counts))
        work.publish()
    log = logging.getLogger("joint_shards")
    log.info(", ".join(f"{name} {count}" for name, count in counts.items() if not name.startswith("shard_")))
    inside = f"{amount(counts['picture_bytes'])} of pictures and {amount(counts['annotation_bytes'])} of annotations"
    log.info("%s of shards for %s: %.3f times", amount(counts["shard_bytes"]), inside, counts["shard_overhead"])


def _maker(
    root: Path, depth: Path, codebook: Path, params: JointShardsParams, planned: Path, out: Path
) -> Callable[[str], ShardPart]:
    """What makes a shard by its name."""
    torch.set_num_threads(1)
    reasons = {row.file: row.reason for row in read_quarantine(depth / QUARANTINE)}
    maker = ShardMaker(root=root, depth=depth, codebook=codebook, params=params, reasons=reasons)
    plan = Plan(planned, params=params)
    return lambda name: maker.make(plan.job(name), folder=out)


if __name__ == "__main__":
    main()
