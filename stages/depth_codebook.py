"""Stage `depth_codebook`: the VQ-VAE that turns depth maps into codes."""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib import colormaps
from PIL import Image
from safetensors import SafetensorError

from perceptio_core.data.manifest.manifest import read_images
from perceptio_core.data.shards.markers import sample_markers
from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.codebook_training import CURVE, TrainedCodebook, train_codebook, validate_codebook
from perceptio_core.depth.store import DepthStore
from perceptio_core.metrics import write_metrics
from perceptio_core.params.base import expanded
from perceptio_core.params.depth_codebook import DepthCodebookParams
from perceptio_core.params.values import read_values
from stages.common import StagePaths, fingerprint, publish, stage_arguments

DESCRIPTION = """Train the depth codebook on the teacher's maps and test it.

Reads   artifacts/<profile>/teacher_depth and the splits in sources/images.parquet; the section `depth_codebook`;
        with `pretrained`, that folder.
Does    trains a VQ-VAE on the maps of the split train (on all ranks when started by torchrun), or takes the one in
        `pretrained`; then scores it on the split val: error, use of the codes, and whether the nearest of 3, 4 and 5 points
        can be read off the decoded map.
        A killed run goes on from its last checkpoint.
Writes  artifacts/<profile>/depth_codebook/
          model.safetensors, config.json   the codebook
          metrics.json, summary.json       scores with sample counts
          plots/curve.csv, plots/codes.csv loss over steps (none where nothing was trained), uses of each code
          samples.png                      maps (above) and what their codes decode to (below)
"""


def main() -> None:
    """Run the stage."""
    arguments = stage_arguments(DESCRIPTION)
    values = read_values(arguments.params)
    params, paths = values.section("depth_codebook", DepthCodebookParams), StagePaths(values.profile)
    paths.claim("depth_codebook")
    images, depth = paths.made("sources") / "images.parquet", paths.made("teacher_depth")
    join_ranks()
    store = DepthStore(depth)
    keys: dict[str, list[str]] = {"train": [], "val": []}
    for row in read_images(images.parent):
        if row.image_key in store:
            keys[row.split].append(row.image_key)
    for split, found in keys.items():
        if not found:
            raise ValueError(
                f"{images}: no image of the split {split} has a depth map; the codebook is trained on `train` and tested on "
                f"`val`: `sources.datasets` needs an entry with `split: {split}`"
            )
    pretrained = None
    if params.pretrained is not None:
        pretrained = expanded(params.pretrained, key="depth_codebook.pretrained", holds="the codebook")
    # the index stands for the maps: it changes with them
    work = paths.work(
        "depth_codebook", fingerprint(params, images, depth / "index.parquet", *([pretrained] if pretrained else []))
    )
    if pretrained is not None:
        trained = read_codebook(pretrained, params=params)
    else:
        trained = train_codebook(params=params, store=store, keys=keys["train"], work=work)
    if dist.is_initialized():
        rank = dist.get_rank()
        dist.destroy_process_group()
        if rank > 0:
            return
    scores = validate_codebook(
        trained.codebook,
        store=store,
        keys=keys["val"][: params.validation_maps],
        seed=params.seed,
        choose_points=lambda inverse_HW, count, rng: sample_markers(inverse_HW, count=count, rng=rng),
    )
    out = work / "out"
    trained.codebook.save_pretrained(out)
    (out / "plots").mkdir(exist_ok=True)
    _write_rows(out / "plots" / "curve.csv", trained.curve, columns=CURVE)
    uses = [{"code": code, "uses": uses} for code, uses in enumerate(scores.code_counts)]
    _write_rows(out / "plots" / "codes.csv", uses, columns=("code", "uses"))
    _contact_sheet(scores.maps, scores.decoded).save(out / "samples.png")
    write_metrics(out, scores.metrics)
    publish(out, paths.out("depth_codebook"))
    (work / "checkpoint.pt").unlink(missing_ok=True)
    log = logging.getLogger("depth_codebook")
    log.info(", ".join(f"{metric.name} {metric.value:.4g}" for metric in scores.metrics))
    value = {metric.name: metric.value for metric in scores.metrics}
    used, error = value["codebook_usage"], value["codebook_mse"]
    log.info("%d codes, of which %.0f %% are used; mean squared error %.3g", params.num_codes, used, error)


def read_codebook(folder: Path, *, params: DepthCodebookParams) -> TrainedCodebook:
    """A finished codebook, without a loss curve.

    Raises:
        ValueError: there is none in the folder, or it is not of the sizes that the parameters name.
    """
    try:
        codebook = DepthCodebook.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"depth_codebook.pretrained: {folder} is no codebook: {type(error).__name__}: {error}") from error
    wanted = {"num_codes": params.num_codes, "resolution": params.resolution, "widths": list(params.widths), "dim": params.dim}
    if differing := [f"{key}: {codebook.config[key]}" for key, value in wanted.items() if codebook.config[key] != value]:
        raise ValueError(f"depth_codebook.pretrained: {folder} has {', '.join(differing)}; the profile must say so too")
    return TrainedCodebook(codebook=codebook, curve=[])


def join_ranks() -> None:
    """Under torchrun: take the GPU of this process's number on its machine, and meet the other ranks."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # "cuda" is the first GPU to every process until it says so
    dist.init_process_group()


def _write_rows(path: Path, rows: Sequence[Mapping[str, float]], *, columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def _contact_sheet(maps: Sequence[np.ndarray], decoded: Sequence[np.ndarray]) -> Image.Image:
    above, below = (np.concatenate([np.clip((m + 1) / 2, 0, 1) for m in row], axis=1) for row in (maps, decoded))
    colours = colormaps["magma"](np.concatenate([above, below]))[..., :3]
    sheet = Image.fromarray(np.rint(255 * colours).astype(np.uint8))
    return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST) if sheet.height < 400 else sheet


if __name__ == "__main__":
    main()
