"""Stage `joint_shards`: image, masks, texts and depth codes joined by key into WebDataset tars."""

import logging
import shutil
from pathlib import Path

import torch

from perceptio_core.data.joint import ShardJob, ShardMaker, plan
from perceptio_core.data.manifest import data_root, read_images, read_quarantine, read_records
from perceptio_core.data.records import Refused
from perceptio_core.data.shards import ShardPart, load_part, save_part, write_index
from perceptio_core.data.workers import cores, in_order
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.params import load_profile
from perceptio_core.params.joint_shards import JointShardsParams
from perceptio_core.progress import track
from stages.common import StagePaths, fingerprint, publish, stage_arguments, write_metrics

DESCRIPTION = """Join images, masks, texts and depth codes by image key into training shards.

Reads   artifacts/<profile>/sources (manifest), teacher_depth (depth maps), depth_codebook (codebook); the images below the
        data root; the profile's section `joint_shards`.
Does    encodes every depth map into codes, makes depth-order questions from the depth maps (points circled on the image,
        no image-plane short cut better than chance), and writes every sample once. The tars are the same bytes whenever
        the inputs are. A killed run goes on with the shards that are missing.
Writes  artifacts/<profile>/joint_shards/
          train-00000.tar ..., val-00000.tar ...   <key>.jpg|png and <key>.json, readable by webdataset
          samples.parquet                          where each sample lies, for random access
          index.json                               schema version, shards with counts, sizes and sha256
          quarantine.jsonl                         {file, reason} for every image and record that was left out
          metrics.json                             counts
"""

_maker: ShardMaker
_folders: tuple[Path, Path]


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    profile = load_profile(arguments.profile)
    params, paths = profile.joint_shards, StagePaths(arguments.profile)
    sources, depth, codebook = paths.out("sources"), paths.out("teacher_depth"), paths.out("depth_codebook")
    root = data_root(profile.sources, sources)
    manifest = [sources / name for name in ("images.parquet", "records.parquet")]
    # The index stands for the depth maps, the weights for the codebook: each changes with what it stands for.
    key = fingerprint(
        params, str(root), *manifest, depth / "index.parquet", codebook / "config.json", codebook / "model.safetensors"
    )
    work = paths.work("joint_shards", key)
    parts, out = work / "parts", work / "out"
    parts.mkdir(exist_ok=True)
    out.mkdir(exist_ok=True)

    jobs = plan(read_images(sources), read_records(sources), params=params)
    left = [job for job in jobs if not (parts / f"{job.name}.json").is_file()]
    reasons = read_quarantine(depth / "quarantine.jsonl")
    start = (root, depth, codebook, params, reasons, parts, out)
    workers = min(params.workers or cores(), max(1, len(left)))
    made = in_order(_make, left, workers=workers, start=_start, arguments=start)
    total = sum(len(job.images) for job in left)
    images = (None for job, _ in zip(left, made, strict=True) for _ in job.images)
    for _ in track(images, total=total, label="joint shards", unit="images"):
        pass

    facts = DepthCodebook.from_pretrained(codebook)
    about = {"num_codes": facts.num_codes, "depth_tokens": facts.grid**2}
    earlier = [Refused(file=file, reason=reason) for file, reason in read_quarantine(sources / "quarantine.jsonl").items()]
    done = [load_part(parts / f"{job.name}.json") for job in jobs]
    counts = write_index(out, done, quarantine=earlier, about=about)
    write_metrics(out / "metrics.json", counts)
    publish(out, paths.out("joint_shards"))
    shutil.rmtree(work)
    logging.getLogger("joint_shards").info(", ".join(f"{name} {count}" for name, count in counts.items()))


def _start(
    root: Path,
    depth: Path,
    codebook: Path,
    params: JointShardsParams,
    reasons: dict[str, str],
    parts: Path,
    out: Path,
) -> None:
    """Open in this process what the shards are made from."""
    global _maker, _folders  # a process pool starts its workers through module state
    torch.set_num_threads(1)
    _maker = ShardMaker(root=root, depth=depth, codebook=codebook, params=params, reasons=reasons)
    _folders = parts, out


def _make(job: ShardJob) -> None:
    parts, out = _folders
    part: ShardPart = _maker.make(job, folder=out)
    save_part(parts / f"{job.name}.json", part)


if __name__ == "__main__":
    main()
