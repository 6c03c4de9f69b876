"""The depth teacher: Depth Anything V2 (arXiv 2406.09414), image in, inverse depth out.

The weights and the network are `transformers`'. What is around them is that of Depth Anything's own code, from which
`transformers` differs: the size that an image goes in at, how it gets there, the position table at that size, and how the
map is resized. Ours: a bound on long images, and the inverse of metric depth.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from perceptio_core.weights import load_pretrained

LEAST_DEPTH = 1e-2  # metres; bounds the inverse of a metric teacher's depth
LONGEST = 8  # times the model's side: images that would be longer are compressed along that side
POSITION_OFFSET = 0.1  # cells, added to the size that the position table is stretched to (DINOv2)
Key = TypeVar("Key")


class Teacher:
    """A Depth Anything V2 of either kind: relative models write inverse depth, metric ones depth, which is inverted.

    Args:
        model: in evaluation mode, on its device.
        processor: the checkpoint's own image processor, for the model's side, its patch, and the colours' mean and deviation.

    Attributes:
        side: pixels that an image's shorter side goes in with.
    """

    def __init__(self, *, model: DepthAnythingForDepthEstimation, processor: DPTImageProcessor) -> None:
        self.model, self.side, self._multiple = model, int(processor.size["height"]), int(processor.ensure_multiple_of)
        self._mean_311, self._std_311 = (
            (torch.tensor(values) * 255)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        embeddings = model.backbone.embeddings
        embeddings.interpolate_pos_encoding = partial(position_table, embeddings)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Load a checkpoint directory in `transformers`' format (safetensors) in float32, on the GPU where there is one.

        Raises:
            ValueError: weights are missing, not used, or of another shape; every one is named.
        """
        model = load_pretrained(DepthAnythingForDepthEstimation, folder, use_safetensors=True, dtype=torch.float32).eval()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model=model.to(device), processor=DPTImageProcessor.from_pretrained(folder))

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """The image (RGB) as the model takes it: (3, h, w) float32, h and w those of `model_size`.

        Resized by OpenCV's cubic interpolation, which does not smooth what it makes smaller (Depth Anything).
        """
        height, width = model_size(height=image.height, width=image.width, side=self.side, multiple=self._multiple)
        resized = [
            cv2.resize(np.asarray(channel, np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
            for channel in image.split()  # one at a time: a photograph of 64 megapixels is 0.8 GB in float32
        ]
        return torch.from_numpy(np.stack(resized)).sub_(self._mean_311).div_(self._std_311)

    @torch.inference_mode()
    def inverse_depth(self, pixels: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
        """Inverse depth maps, near = high, >= 0: in 1/m from a metric teacher, else relative.

        Args:
            pixels: what `pixels` gave for each image, all of one shape.
            sizes: (height, width) that each map is resized to (bilinear, corner pixels on corner pixels: Depth Anything).
        """
        batch = torch.stack(list(pixels)).to(self.model.device, self.model.dtype)
        predicted_Bhw = self.model(batch).predicted_depth.float()
        maps = []
        for predicted_hw, size in zip(predicted_Bhw, sizes, strict=True):
            depth_HW = F.interpolate(predicted_hw[None, None], size=size, mode="bilinear", align_corners=True)[0, 0]
            if self.model.config.depth_estimation_type == "metric":
                depth_HW = 1 / depth_HW.clamp_min(LEAST_DEPTH)
            maps.append(depth_HW.clamp_min(0).cpu().numpy())
        return maps


def model_size(*, height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """(height, width) that an image goes into the model with (Depth Anything): 426 x 640 at side 518 is 518 x 784.

    The aspect ratio is kept and the shorter side has `side` pixels, both to the nearest multiple that is not below `side`.
    Ours: no side has more than `LONGEST` times `side`. Depth Anything's own code has no bound, so that a strip of 32 x 1024
    pixels takes 32 times the memory of a square, and one of 1 x 3000 more than there is.
    """
    scale = max(side / height, side / width)

    def cells(length: int) -> int:
        nearest = round(scale * length / multiple)
        enough = nearest if nearest * multiple >= side else math.ceil(scale * length / multiple)
        return min(enough, LONGEST * side // multiple)

    return cells(height) * multiple, cells(width) * multiple


def position_table(embeddings: Dinov2Embeddings, _tokens_BND: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The position embeddings (1, 1 + h * w, D) of an image of height x width pixels, stretched as in DINOv2's own code.

    By (h + 0.1) / side, not h / side as `transformers` has it: the teacher's weights were trained so. A table that fits is left
    as it is.
    """
    table_1ND, patch = embeddings.position_embeddings, embeddings.config.patch_size
    side, rows, columns = math.isqrt(table_1ND.shape[1] - 1), height // patch, width // patch
    if rows == columns == side:
        return table_1ND
    grid_1Dss = table_1ND[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scales = ((rows + POSITION_OFFSET) / side, (columns + POSITION_OFFSET) / side)
    stretched_1Dhw = F.interpolate(grid_1Dss, scale_factor=scales, mode="bicubic")
    return torch.cat([table_1ND[:, :1], stretched_1Dhw.flatten(2).transpose(1, 2).to(table_1ND.dtype)], dim=1)


def stored_size(*, height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) of a map: the image's, or scaled down so that the longer side has `long_side` pixels."""
    factor = min(1.0, long_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def batches(items: Iterable[tuple[Key, torch.Tensor]], *, most_pixels: int) -> Iterator[list[tuple[Key, torch.Tensor]]]:
    """Group (key, pixels) into lists of one shape and at most `most_pixels` pixels, or of one; order within a shape is kept."""
    waiting: dict[torch.Size, list[tuple[Key, torch.Tensor]]] = defaultdict(list)
    for key, pixels in items:
        group = waiting[pixels.shape]
        group.append((key, pixels))
        if (len(group) + 1) * pixels[0].numel() > most_pixels:
            yield waiting.pop(pixels.shape)
    yield from waiting.values()
