"""Dense helper tasks that teach mini's InternVL vision tower to see (ours); the heads are thrown away afterwards.

Every 4 x 4 pixel cell is asked for the shape, colour and material of what it shows and whether an instance border crosses
it; every patch is asked which marker is circled in it, which letter is printed in it, and where it lies. Nothing here
knows depth, depth order or the physical size of a thing (which, with its size in the picture, would give its depth):
co-training adds those.
"""

import logging
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from perceptio_core.data.shards.markers import LETTERS, Marker, draw_markers, marker_style
from perceptio_core.foundations.cache import SceneCache, pretraining_world
from perceptio_core.foundations.run import PretrainingRun
from perceptio_core.scenes.world import COLORS, MATERIALS, SHAPES, World

log = logging.getLogger(__name__)
CELL = 4  # pixels
IGNORE = -100
COLOR_NAMES = tuple(COLORS)
PLACES = 8  # patches a side
# classes of each dense task; what: the shapes, then platform, then background
CLASSES = {"what": len(SHAPES) + 2, "color": len(COLORS), "material": len(MATERIALS), "border": 2}
PATCH_CLASSES = {"circle": len(LETTERS) + 1, "letter": len(LETTERS) + 1, "column": PLACES, "row": PLACES}
EMPTY = 0.1  # weight of the many patches and cells that show no marker and no object


class DenseTargets(NamedTuple):
    """Class indices, IGNORE where a task does not apply: `cells` task -> (B, G, G) with G = size / CELL, `patches`
    task -> (B, P, P) with P patches a side.
    """

    cells: dict[str, Tensor]
    patches: dict[str, Tensor]


def attributes(world: World) -> np.ndarray:
    """(objects + 1, 3) int64 rows (what, color, material) by instance number; row 0 is the background."""
    rows = [(CLASSES["what"] - 1, IGNORE, IGNORE)]
    for thing in world.objects:
        if thing.role == "platform":
            rows.append((len(SHAPES), IGNORE, IGNORE))
        else:
            rows.append(
                (
                    SHAPES.index(thing.shape),
                    COLOR_NAMES.index(thing.color),
                    MATERIALS.index(thing.material),
                )
            )
    return np.array(rows, dtype=np.int64)


@lru_cache(maxsize=200_000)  # small arrays, each wanted again in every epoch
def _attributes_of(split: str, index: int, size: int) -> np.ndarray:
    return attributes(pretraining_world(split, index, size))


def random_markers(size: int, rng: np.random.Generator) -> list[Marker]:
    """Between 2 and 5 lettered points anywhere in the image, apart from each other; they know nothing of depth."""
    style = marker_style(size)
    markers: list[Marker] = []
    letters = list(rng.permutation(list(LETTERS)[: int(rng.integers(2, 6))]))
    for _ in range(60):
        if not letters:
            break
        x = int(rng.integers(style.width // 2 + 1, size - style.width // 2 - 1))
        y = int(rng.integers(style.height, size - style.radius - 1))
        if all(abs(x - m.x) >= style.width or abs(y - m.y) >= style.height for m in markers):
            markers.append(Marker(letter=str(letters.pop()), x=x, y=y, inverse_depth=0.0))
    return sorted(markers, key=lambda m: m.letter)


def marked_images(cache: SceneCache, indices: np.ndarray, markers: list[list[Marker]]) -> np.ndarray:
    """The images (B, H, W, 3) uint8 of some scenes with their markers drawn in."""
    return np.stack(
        [
            np.asarray(draw_markers(Image.fromarray(cache.images[index]), points)) if points else cache.images[index]
            for index, points in zip(indices.tolist(), markers, strict=True)
        ]
    )


def dense_batch(
    cache: SceneCache,
    indices: np.ndarray,
    markers: list[list[Marker]],
    *,
    patch: int,
) -> tuple[Tensor, DenseTargets]:
    """Marked images (B, H, W, 3) uint8 and their targets."""
    style = marker_style(cache.size)
    grid = cache.size // patch
    cells: dict[str, list[np.ndarray]] = {task: [] for task in CLASSES}
    patches = {task: np.zeros((len(indices), grid, grid), np.int64) for task in PATCH_CLASSES}
    patches["column"][:] = np.arange(grid) * PLACES // grid
    patches["row"][:] = (np.arange(grid) * PLACES // grid)[:, None]
    for number, (index, points) in enumerate(zip(indices.tolist(), markers, strict=True)):
        instances = cache.instances[index]
        middle = instances[CELL // 2 :: CELL, CELL // 2 :: CELL]
        for task, column in zip(("what", "color", "material"), _attributes_of(cache.split, index, cache.size).T, strict=True):
            cells[task].append(column[middle])
        blocks = instances.reshape(len(instances) // CELL, CELL, -1, CELL)
        cells["border"].append((blocks.max(axis=(1, 3)) != blocks.min(axis=(1, 3))).astype(np.int64))
        for marker in points:
            number_of_letter = LETTERS.index(marker.letter) + 1
            patches["circle"][number, marker.y // patch, marker.x // patch] = number_of_letter
            box = marker.y - style.radius - style.gap - style.box_height // 2
            patches["letter"][number, max(box, 0) // patch, marker.x // patch] = number_of_letter
    return torch.from_numpy(marked_images(cache, indices, markers)), DenseTargets(
        cells={task: torch.from_numpy(np.stack(rows)) for task, rows in cells.items()},
        patches={task: torch.from_numpy(rows) for task, rows in patches.items()},
    )


class DenseHeads(nn.Module):
    """Linear read-outs of every dense task from patch features (B, P * P, D)."""

    def __init__(self, *, width: int, patch: int) -> None:
        super().__init__()
        self.per_side = patch // CELL
        self.norm = nn.LayerNorm(width)
        self.cells = nn.ModuleDict({task: nn.Linear(width, n * self.per_side**2) for task, n in CLASSES.items()})
        self.patches = nn.ModuleDict({task: nn.Linear(width, n) for task, n in PATCH_CLASSES.items()})
        for task, n in {**CLASSES, **PATCH_CLASSES}.items():
            weight = torch.ones(n)
            if task == "what":
                weight[-1] = EMPTY
            elif task in ("circle", "letter"):
                weight[0] = EMPTY
            self.register_buffer(f"weight_{task}", weight, persistent=False)

    def forward(self, features: Tensor, targets: DenseTargets) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cross-entropy of each task, and its accuracy where there is an object, a marker or a border."""
        batch, count, _ = features.shape
        side, features = int(count**0.5), self.norm(features)
        losses, accuracies = {}, {}
        for task, head in self.cells.items():
            logits = head(features).view(batch, side, side, self.per_side, self.per_side, CLASSES[task])
            logits = logits.permute(0, 1, 3, 2, 4, 5).reshape(-1, CLASSES[task])
            truth = targets.cells[task].reshape(-1)
            known = (truth != IGNORE) & (truth < len(SHAPES)) if task == "what" else truth != IGNORE
            losses[task] = F.cross_entropy(logits, truth, weight=self.get_buffer(f"weight_{task}"), ignore_index=IGNORE)
            accuracies[task] = _share(logits.argmax(-1) == truth, among=known)
        for task, head in self.patches.items():
            logits, truth = head(features).view(-1, PATCH_CLASSES[task]), targets.patches[task].reshape(-1)
            known = truth >= 0 if task in ("column", "row") else truth > 0
            losses[task] = F.cross_entropy(logits, truth, weight=self.get_buffer(f"weight_{task}"))
            accuracies[task] = _share(logits.argmax(-1) == truth, among=known)
        return losses, accuracies


def _share(right: Tensor, *, among: Tensor) -> Tensor:
    """Share of True in `right` where `among` is; NaN where it is nowhere."""
    return (right & among).sum() / among.sum()


def tower_config() -> InternVLVisionConfig:
    """Mini's vision tower: 128 px, 8 x 8 patches of 16 px, 2.1 M parameters."""
    return InternVLVisionConfig(
        hidden_size=192,
        num_hidden_layers=5,
        num_attention_heads=6,
        intermediate_size=576,
        attention_bias=True,
        image_size=128,
        patch_size=16,
        layer_scale_init_value=1.0,
    )


@torch.no_grad()
def initialise_tower(tower: InternVLVisionModel, *, gain: float = 4.0, amplitude: float = 0.5) -> None:
    """Start with attention that is local, as a convolution is (Trockman and Kolter, arXiv 2305.09828): queries near the keys,
    and positions as sines and cosines of column and row, so that near patches resemble each other.
    """
    width = tower.config.hidden_size
    angles_PF = torch.arange(PLACES)[:, None] / 10.0 ** torch.linspace(0, 1, width // 4)
    waves_PH = torch.cat([angles_PF.sin(), angles_PF.cos()], dim=1)
    row_PPH, column_PPH = waves_PH[:, None].expand(-1, PLACES, -1), waves_PH[None].expand(PLACES, -1, -1)
    tower.embeddings.position_embeddings.zero_()
    tower.embeddings.position_embeddings[0, 1:] = amplitude * torch.cat([row_PPH, column_PPH], dim=2).flatten(0, 1)
    for layer in tower.encoder.layer:
        layer.attention.q_proj.weight.mul_(0.5).add_(gain * layer.attention.k_proj.weight)


def pixel_tensor(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, normalised as InternVL does (ImageNet mean and deviation)."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor((IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), device=images.device)[:, :, None, None]
    return (scaled - mean) / std


def pretrain_tower(
    *, train: SceneCache, val: SceneCache, steps: int, batch: int, lr: float, seed: int, work: Path, workers: int
) -> dict[str, float]:
    """Train tower and heads on the dense tasks; leaves `tower.safetensors` and `heads.safetensors` in `work`.

    Resumes from the last checkpoint in `work`. Step i draws its scenes and markers from (seed, i) alone; `workers` processes
    prepare batches. Returns the validation accuracies in percent.
    """
    torch.manual_seed(seed)
    tower = InternVLVisionModel(tower_config())
    initialise_tower(tower)
    heads = DenseHeads(width=tower.config.hidden_size, patch=16)
    run = PretrainingRun(modules={"tower": tower, "heads": heads}, steps=steps, lr=lr, warmup=100, weight_decay=0.05, work=work)

    def make(step: int) -> tuple[Tensor, DenseTargets]:
        rng = np.random.default_rng((seed, step))
        indices = rng.choice(len(train.images), batch, replace=False)
        points = [random_markers(train.size, rng) if rng.random() < 0.7 else [] for _ in indices]
        return dense_batch(train, indices, points, patch=16)

    for _, (images, targets) in run.batches(make, workers=workers):
        features = tower(pixel_values=pixel_tensor(images)).last_hidden_state[:, 1:]
        losses, accuracies = heads(features, targets)
        run.update(torch.stack(list(losses.values())).sum(), accuracies)
    run.finish()
    return tower_scores(tower, heads, val)


@torch.no_grad()
def tower_scores(tower: InternVLVisionModel, heads: DenseHeads, val: SceneCache) -> dict[str, float]:
    """Accuracy of every dense task on the first 400 validation scenes, in percent."""
    sums: dict[str, list[float]] = {}
    for start in range(0, min(400, len(val.images)), 50):
        rng = np.random.default_rng((7, start))
        indices = np.arange(start, start + 50)
        points = [random_markers(val.size, rng) for _ in indices]
        images, targets = dense_batch(val, indices, points, patch=16)
        features = tower(pixel_values=pixel_tensor(images)).last_hidden_state[:, 1:]
        for name, accuracy in heads(features, targets)[1].items():
            sums.setdefault(name, []).append(float(accuracy))
    return {name: round(100 * float(np.mean(values)), 1) for name, values in sums.items()}
