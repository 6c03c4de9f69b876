"""Pretraining of mini's SAM2 on the procedural world: masks of any visible thing, prompted by a click or a box (ours).

The generic task that the real SAM2 has: objects and platforms alike, no names, no expressions. Scenes come from the
pretraining range of seeds, which the pipeline's worlds never touch. Everything that a click or box on a still image runs
is trained; the memory modules, the multi-mask tokens and the score heads keep their first values.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from perceptio_core.foundations.cache import SceneCache, scene_cache
from perceptio_core.foundations.run import PretrainingRun, begin, hardware
from perceptio_core.segmentation.bridge import sam2_pixels
from perceptio_core.segmentation.losses import mask_losses
from perceptio_core.segmentation.sam2 import ImageFeatures, build_sam2, decode_masks, encode_images, mini_config, save_sam2

log = logging.getLogger(__name__)
WORK = Path(".work/foundations")
VISIBLE = 40  # pixels of a thing that can be asked for
PER_IMAGE = (2, 4)  # things asked for in a training image, where it has as many
JITTER = 0.05  # standard deviation of a box edge, as a share of the box's side; at most twice that
POINTS = 2048  # sampled for the loss, of 128 x 128
VAL_SCENES, VAL_EVERY = 200, 1000


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One instance to segment: `image` its row in the batch, `mask` (H, W) bool, a click (x, y) inside it and a box
    (left, top, right, bottom) around it, in pixels.
    """

    image: int
    mask: np.ndarray
    click: tuple[float, float]
    box: tuple[float, float, float, float]


def draw_things(instances_BHW: np.ndarray, rng: np.random.Generator, *, at_most: int | None = None) -> list[Thing]:
    """Things visible in each image, in random order, all of them or `at_most` so many an image; with their prompts."""
    things = []
    for row, instances in enumerate(instances_BHW):
        areas = np.bincount(instances.ravel())
        numbers = [i for i in range(1, len(areas)) if areas[i] >= VISIBLE]
        for number in rng.permutation(numbers)[:at_most]:
            mask = instances == number
            things.append(Thing(image=row, mask=mask, click=_click(mask, rng), box=_box(mask, rng)))
    return things


class Prompts(NamedTuple):
    """M prompts as SAM2 takes them: `image_M` int64 rows of a batch, `points_MN2` float32 pixels (x, y), `labels_MN` int64."""

    image_M: Tensor
    points_MN2: Tensor
    labels_MN: Tensor


def prompts(things: Sequence[Thing], kind: str) -> Prompts:
    """The "click"s or the "box"es of things. SAM2 takes a box as its two corners."""
    points = torch.tensor([getattr(thing, kind) for thing in things], dtype=torch.float32)
    return Prompts(
        image_M=torch.tensor([thing.image for thing in things]),
        points_MN2=points.view(len(things), -1, 2),
        labels_MN=torch.tensor({"click": [1], "box": [2, 3]}[kind]).repeat(len(things), 1),
    )


def predict(sam: SAM2Base, features: ImageFeatures, asked: Prompts) -> Tensor:
    """Mask logits (M, 4h, 4w) of M prompts."""
    sparse, _ = sam.sam_prompt_encoder(points=(asked.points_MN2, asked.labels_MN), boxes=None, masks=None)
    return decode_masks(sam, features, image_index_M=asked.image_M, sparse_MNC=sparse)


def ious(logits_Mhw: Tensor, masks_MHW: Tensor) -> Tensor:
    """Intersection over union (M,) of predicted masks, resized to the true ones (bool)."""
    resized = F.interpolate(logits_Mhw[:, None].detach(), size=masks_MHW.shape[1:], mode="bilinear", align_corners=False)
    found = resized[:, 0] > 0
    both, either = (found & masks_MHW).sum((1, 2)), (found | masks_MHW).sum((1, 2))
    return both / either.clamp(min=1)


def stacked_masks(things: Sequence[Thing]) -> Tensor:
    """Masks (M, H, W) bool of things."""
    return torch.from_numpy(np.stack([thing.mask for thing in things]))


@torch.no_grad()
def scores(sam: SAM2Base, cache: SceneCache, *, scenes: int, seed: int) -> dict[str, float]:
    """Mean IoU over every visible thing of the first scenes of a cache, by prompt, and how many things that were."""
    device = next(sam.parameters()).device
    found: dict[str, list[Tensor]] = {"box": [], "click": []}
    for start in range(0, min(scenes, len(cache.images)), 20):
        rows = slice(start, min(start + 20, scenes))
        things = draw_things(np.asarray(cache.instances[rows]), np.random.default_rng((seed, start)))
        features = encode_images(sam, sam2_pixels(list(cache.images[rows]), size=sam.image_size).to(device))
        masks = stacked_masks(things).to(device)
        for kind, values in found.items():
            values.append(ious(predict(sam, features, send_to_device(prompts(things, kind), device)), masks))
    figures = {f"iou_{kind}": round(float(torch.cat(values).mean()), 4) for kind, values in found.items()}
    return {**figures, "things": sum(len(values) for values in found["box"])}


class PromptedBatch(NamedTuple):
    """What one step learns from: `pixels_B3SS` for the image encoder, clicks and boxes, the `masks_MHW` (bool) of first the
    clicks and then the boxes, and the seed of the points at which the loss is computed.
    """

    pixels_B3SS: Tensor
    clicks: Prompts
    boxes: Prompts
    masks_MHW: Tensor
    point_seed: int


def prompted_batch(train: SceneCache, batch: int, size: int, seed: int, step: int) -> PromptedBatch:
    """Scenes, half of them mirrored, with things to segment in each; half of the prompts are clicks, half are boxes."""
    rng = np.random.default_rng((seed, step))
    rows = np.sort(rng.choice(len(train.images), batch, replace=False))
    images, instances = train.images[rows], train.instances[rows]
    flipped = rng.random(batch) < 0.5
    images[flipped], instances[flipped] = images[flipped, :, ::-1], instances[flipped, :, ::-1]
    things = draw_things(instances, rng, at_most=int(rng.integers(PER_IMAGE[0], PER_IMAGE[1] + 1)))
    rng.shuffle(things)
    half = len(things) // 2
    return PromptedBatch(
        pixels_B3SS=sam2_pixels(list(images), size=size),
        clicks=prompts(things[:half], "click"),
        boxes=prompts(things[half:], "box"),
        masks_MHW=stacked_masks(things),
        point_seed=int(rng.integers(2**62)),
    )


def pretrain(
    out_dir: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    train: SceneCache,
    val: SceneCache,
    workers: int,
    command: str,
) -> dict[str, float]:
    """Pretrain mini's SAM2; writes `out_dir/sam2/` {config.json, model.safetensors, metrics.json}.

    Killed, it resumes from its last checkpoint when called again with the same numbers. Step i draws its scenes, prompts
    and loss points from (seed, i) alone; `workers` processes prepare batches.

    Returns:
        The scores on the validation scenes.
    """
    torch.manual_seed(seed)
    sam = build_sam2(mini_config()).train()
    work = WORK / f"sam2-{seed}-{steps}-{batch}-{lr:g}-{len(train.images)}"
    run = PretrainingRun(modules={"sam2": sam}, steps=steps, lr=lr, warmup=min(200, steps), weight_decay=0.05, work=work)
    make = partial(prompted_batch, train, batch, sam.image_size, seed)
    for step, asked in run.batches(make, workers=workers):
        features = encode_images(sam, asked.pixels_B3SS)
        logits = torch.cat([predict(sam, features, asked.clicks), predict(sam, features, asked.boxes)])
        points = torch.Generator(run.device).manual_seed(asked.point_seed)
        losses = mask_losses(logits, list(asked.masks_MHW), num_points=POINTS, generator=points)
        overlap, half = ious(logits, asked.masks_MHW), len(asked.clicks.image_M)
        run.update(losses.ce + losses.dice, {"iou_click": overlap[:half].mean(), "iou_box": overlap[half:].mean()})
        if (step + 1) % VAL_EVERY == 0 and step + 1 < steps:
            log.info("validation after %d steps: %s", step + 1, scores(sam, val, scenes=VAL_SCENES, seed=seed))
    run.finish()
    sam.eval().half().float()  # kept in 16 bits, and scored as kept
    figures = scores(sam, val, scenes=VAL_SCENES, seed=seed)
    log.info("validation: %s", figures)
    save_sam2(sam.half(), config=mini_config(), folder=out_dir / "sam2")
    card = {
        "command": command,
        "seed": seed,
        "data": {"train_scenes": len(train.images), "val_scenes": VAL_SCENES, "pixels": train.size},
        "steps": steps,
        "scores": figures,
        "seconds": round(run.seconds),
        "hardware": hardware(workers),
    }
    (out_dir / "sam2" / "metrics.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return figures


def _click(mask: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """A random pixel whose eight neighbours belong to the mask as well, where there is one."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    inner = np.logical_and.reduce([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    ys, xs = np.nonzero(inner if inner.any() else mask)
    i = int(rng.integers(len(ys)))
    return float(xs[i]), float(ys[i])


def _box(mask: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """The tight box, its edges shifted a little."""
    ys, xs = np.nonzero(mask)
    tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=float)
    sides = np.tile(tight[2:] - tight[:2], 2)
    left, top, right, bottom = tight + sides * np.clip(rng.normal(0, JITTER, 4), -2 * JITTER, 2 * JITTER)
    return float(left), float(top), float(right), float(bottom)


def main() -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(
        description="Pretrain mini's SAM2 on rendered scenes (cached below .work/scenes) and write OUT/sam2/ with its weights, "
        "config and metrics. Stop it at any time: the same command goes on from the last checkpoint."
    )
    parser.add_argument("--steps", type=int, default=2100, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=48, help="images a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak learning rate (%(default)s)")
    arguments, command = begin(parser, "sam2", scenes=32000)
    begun = time.perf_counter()
    pretrain(
        arguments.out,
        seed=arguments.seed,
        steps=arguments.steps,
        batch=arguments.batch,
        lr=arguments.lr,
        train=scene_cache("train", arguments.scenes),
        val=scene_cache("val", 2 * VAL_SCENES),
        workers=arguments.workers,
        command=command,
    )
    log.info("done in %.0f s", time.perf_counter() - begun)


if __name__ == "__main__":
    main()
