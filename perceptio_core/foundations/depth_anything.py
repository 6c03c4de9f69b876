"""Mini's Depth Anything V2: a small metric-depth instance of `transformers`' class, pretrained on rendered scenes (ours).

A DINOv2 encoder and a DPT head with the metric output of Depth Anything V2, `max_depth * sigmoid(.)`. As its real
counterpart starts from a DINOv2 that was pretrained on other tasks, it starts from the vision tower that
`perceptio_core.foundations.vision_tower` taught to see (shapes, colours, borders; no depth). It learns the metric depth of
single images and is saved in the published checkpoints' directory format, so that one loader serves both. Run as
``python -m perceptio_core.foundations.depth_anything --out foundations/mini`` after the tower's command.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from perceptio_core.data.shards.markers import sample_markers
from perceptio_core.files import follow_umask
from perceptio_core.foundations.cache import SceneCache, scene_cache
from perceptio_core.foundations.run import PretrainingRun, begin, hardware
from perceptio_core.foundations.vision_tower import tower_config
from perceptio_core.scenes.render import SKY_DEPTH
from perceptio_core.weights import read_safetensors

log = logging.getLogger(__name__)
SIZE, PATCH = 128, 16
# The tower's names, and those of published DINOv2 checkpoints, which every version of transformers translates to its own.
PUBLISHED_NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.projection_layer": "attention.output.dense",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "layer_scale1.lambda1",
    "lambda_2": "layer_scale2.lambda1",
}
LEAST_DEPTH = 0.05  # metres; keeps logarithms finite
GRADIENT_WEIGHT = 0.5
GRADIENT_STRIDES = (1, 2, 4)
VAL_SCENES, VAL_EVERY = 200, 2000
PAIRS = 256  # random pixel pairs a scene in the validation of depth order
MIN_LEVELS = 20.0  # of 255 grey levels of the normalised inverse depth: the least difference of a pair that is judged


def mini_config() -> DepthAnythingConfig:
    """A 2.2 M-parameter Depth Anything for 128 pixel images, its encoder shaped like mini's vision tower.

    The neck works at 32, 16 and 8 cells a side, and the head brings it to full resolution: about 0.4 GFLOP an image.
    """
    tower = tower_config()
    layers = tower.num_hidden_layers
    backbone = Dinov2Config(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=tower.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=tower.num_attention_heads,
        mlp_ratio=tower.intermediate_size // tower.hidden_size,
        out_indices=[2, 4, layers],
        reshape_hidden_states=False,
        use_mask_token=False,
    )
    return DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH,
        reassemble_hidden_size=tower.hidden_size,
        reassemble_factors=[4, 2, 1],
        neck_hidden_sizes=[32, 48, 64],
        fusion_hidden_size=32,
        head_hidden_size=16,
        depth_estimation_type="metric",
        max_depth=int(SKY_DEPTH),
    )


def with_encoder(tower: Mapping[str, Tensor]) -> DepthAnythingForDepthEstimation:
    """A new model whose DINOv2 encoder has the weights of an InternVL vision tower: it computes the same but for its last norm.

    Raises:
        ValueError: the names are not those of a tower of `tower_config`.
        RuntimeError: the shapes are not.
    """
    weights = {}
    for key, tensor in tower.items():
        for old, new in PUBLISHED_NAMES.items():
            key = key.replace(old, new)
        weights[f"backbone.{key}"] = tensor
    model, info = DepthAnythingForDepthEstimation.from_pretrained(
        None, config=mini_config(), state_dict=weights, output_loading_info=True
    )
    unknown = sorted(info["unexpected_keys"])
    missing = {key for key in info["missing_keys"] if key.startswith("backbone.")}
    if unknown or missing != {"backbone.layernorm.weight", "backbone.layernorm.bias"}:
        raise ValueError(f"not the vision tower of mini's InternVL: unknown {unknown}, missing {sorted(missing)}")
    return model.train()


def image_processor() -> DPTImageProcessor:
    """The processor of the published checkpoints at mini's size: aspect ratio kept, sides multiples of the patch."""
    return DPTImageProcessor(
        size={"height": SIZE, "width": SIZE},
        ensure_multiple_of=PATCH,
        keep_aspect_ratio=True,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def pixel_tensor(images_BHW3: Tensor) -> Tensor:
    """What `image_processor` makes of uint8 images of mini's own size."""
    mean, std = (torch.tensor(values, device=images_BHW3.device) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    pixels_BHW3 = images_BHW3.float().div_(255.0).sub_(mean).div_(std)
    return pixels_BHW3.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def depth_loss(predicted_BHW: Tensor, depth_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of two metric depth maps, and of their edges, in log depth (positive metres in, two scalars out).

    The mean absolute error of log depth is the relative error to first order, the same for depth and inverse depth. The
    gradient term of MiDaS (arXiv 1907.01341, eq. 11; here at strides instead of a pyramid) makes object borders sharp.
    """
    residual_BHW = predicted_BHW.clamp_min(LEAST_DEPTH).log() - depth_BHW.clamp_min(LEAST_DEPTH).log()
    edges = residual_BHW.new_zeros(())
    for stride in GRADIENT_STRIDES:
        coarse_BHW = residual_BHW[:, ::stride, ::stride]
        edges = edges + coarse_BHW.diff(dim=1).abs().mean() + coarse_BHW.diff(dim=2).abs().mean()
    return residual_BHW.abs().mean(), edges / len(GRADIENT_STRIDES)


def training_batch(cache: SceneCache, batch: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images (B, H, W, 3) uint8 and depths (B, H, W) in metres of one step, drawn from (seed, step) alone.

    Half of the scenes are mirrored, and each is lit anew (gain 0.8-1.25, gamma 0.8-1.25), none of which changes depth.
    """
    rng = np.random.default_rng((seed, 5, step))
    indices = np.sort(rng.choice(len(cache.images), batch, replace=False))
    images_BHW3, depth_BHW = cache.images[indices], cache.depth[indices].astype(np.float32)
    mirrored = rng.random(batch) < 0.5
    images_BHW3[mirrored] = images_BHW3[mirrored, :, ::-1]
    depth_BHW[mirrored] = depth_BHW[mirrored, :, ::-1]
    gain_B, gamma_B = np.exp(rng.uniform(-0.223, 0.223, (2, batch)))
    curves_BL = np.clip(gain_B[:, None] * np.linspace(0, 1, 256) ** gamma_B[:, None], 0, 1)
    relit_BHW3 = np.rint(255 * curves_BL).astype(np.uint8)[np.arange(batch)[:, None, None, None], images_BHW3]
    return torch.from_numpy(relit_BHW3), torch.from_numpy(depth_BHW)


@torch.inference_mode()
def scores(model: DepthAnythingForDepthEstimation, cache: SceneCache, *, scenes: int) -> dict[str, float]:
    """Validation on the first `scenes` scenes of a split.

    `absrel`: mean |d - t| / t over pixels; `delta1`: % of pixels with max(d/t, t/d) < 1.25; `pair_order`: % of random
    pixel pairs, at least MIN_LEVELS apart, put in the true order; `nearest_3`, `_4`, `_5`: % of depth-order questions
    (markers drawn on the true depth) whose nearest point the predicted map gives right.
    """
    model.eval()
    device = next(model.parameters()).device
    absrel, delta1, ordered, pairs = [], [], 0, 0
    right: dict[int, list[bool]] = {3: [], 4: [], 5: []}
    for index in range(min(scenes, len(cache.images))):
        truth_HW = np.maximum(cache.depth[index].astype(np.float32), LEAST_DEPTH)
        image_1HW3 = torch.from_numpy(cache.images[index : index + 1]).to(device)
        found_HW = model(pixel_tensor(image_1HW3)).predicted_depth[0].cpu().numpy()
        ratio_HW = np.maximum(found_HW, LEAST_DEPTH) / truth_HW
        absrel.append(np.abs(ratio_HW - 1).mean())
        delta1.append((np.maximum(ratio_HW, 1 / ratio_HW) < 1.25).mean())
        inverse_HW = 1 / truth_HW
        levels_HW = 255 * (inverse_HW - inverse_HW.min()) / max(float(np.ptp(inverse_HW)), 1e-9)
        rng = np.random.default_rng((13, index))
        one_P, two_P = rng.integers(truth_HW.size, size=(2, PAIRS))
        apart_P = levels_HW.flat[one_P] - levels_HW.flat[two_P]
        nearer_P = found_HW.flat[one_P] < found_HW.flat[two_P]
        judged_P = np.abs(apart_P) >= MIN_LEVELS
        ordered += int((nearer_P == (apart_P > 0))[judged_P].sum())
        pairs += int(judged_P.sum())
        for count, hits in right.items():
            markers = sample_markers(inverse_HW, count=count, rng=rng)
            if markers is not None:
                nearest = max(markers, key=lambda marker: marker.inverse_depth)
                hits.append(nearest is min(markers, key=lambda marker: float(found_HW[marker.y, marker.x])))
    return {
        "absrel": round(float(np.mean(absrel)), 4),
        "delta1": round(100 * float(np.mean(delta1)), 2),
        "pair_order": round(100 * ordered / max(pairs, 1), 2),
        **{f"nearest_{count}": round(100 * float(np.mean(hits)), 1) for count, hits in right.items() if hits},
    }


def pretrain(
    out: Path,
    *,
    tower: Path,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    train: SceneCache,
    val: SceneCache,
    work: Path,
    workers: int,
    command: str,
) -> dict[str, float]:
    """Train from the encoder in `tower` (safetensors) and write `out`, a Hugging Face directory with metrics.json.

    Returns the validation scores. `work` receives checkpoints; the same call goes on from the last one. `workers` processes
    prepare batches.
    """
    torch.manual_seed(seed)
    # Channels-last weights make a step a sixth faster on a CPU, but safetensors keeps contiguous tensors only.
    model = with_encoder(read_safetensors(tower)).to(memory_format=torch.channels_last)
    model.register_state_dict_post_hook(_contiguous)
    run = PretrainingRun(
        modules={"depth_anything": model}, steps=steps, lr=lr, warmup=min(100, steps), weight_decay=0.02, work=work
    )
    make = partial(training_batch, train, batch, seed)
    for step, (images_BHW3, depth_BHW) in run.batches(make, workers=workers):
        model.train()
        predicted_BHW = model(pixel_tensor(images_BHW3)).predicted_depth
        error, edges = depth_loss(predicted_BHW, depth_BHW)
        with torch.no_grad():
            absrel = F.l1_loss(predicted_BHW / depth_BHW, torch.ones_like(depth_BHW))
        run.update(
            error + GRADIENT_WEIGHT * edges,
            {"log": error, "edges": edges, "absrel": absrel},
        )
        if (step + 1) % VAL_EVERY == 0 and step + 1 < steps:
            log.info("validation after %d steps: %s", step + 1, scores(model, val, scenes=VAL_SCENES))
    run.finish()
    model.half().float()  # kept in 16 bits, and scored as kept
    figures = scores(model, val, scenes=VAL_SCENES)
    log.info("validation: %s", figures)
    model.half().save_pretrained(out)
    follow_umask(*out.glob("*.safetensors"))
    image_processor().save_pretrained(out)
    card = {
        "command": command,
        "seed": seed,
        "encoder": hashlib.sha256(tower.read_bytes()).hexdigest(),
        "data": {"train_scenes": len(train.images), "val_scenes": min(VAL_SCENES, len(val.images)), "pixels": train.size},
        "steps": steps,
        "scores": figures,
        "seconds": round(run.seconds),
        "hardware": hardware(workers),
    }
    (out / "metrics.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return figures


def _contiguous(_module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[name] = state[name].contiguous()


def main() -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(
        description="Pretrain mini's Depth Anything on rendered scenes (cached below .work/scenes) and write "
        "OUT/depth_anything/ with its weights, config, image processor and metrics. Stop it at any time: the same "
        "command goes on from the last checkpoint."
    )
    parser.add_argument(
        "--tower",
        type=Path,
        default=Path(".work/foundations/tower/tower.safetensors"),
        help="vision tower that the encoder starts from, written by the first phase of foundations.internvl (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (%(default)s)")
    arguments, command = begin(parser, "depth_anything")
    pretrain(
        arguments.out / "depth_anything",
        tower=arguments.tower,
        steps=arguments.steps,
        batch=arguments.batch,
        lr=arguments.lr,
        seed=arguments.seed,
        train=scene_cache("train", arguments.scenes),
        val=scene_cache("val", 2 * VAL_SCENES),
        work=Path(".work/foundations/depth_anything"),
        workers=arguments.workers,
        command=command,
    )


if __name__ == "__main__":
    main()
