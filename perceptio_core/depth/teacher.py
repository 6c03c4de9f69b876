"""The depth teacher: Depth Anything V2 (arXiv 2406.09414) in its `transformers` form, image in, inverse depth out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor

from perceptio_core.weights import load_pretrained

LEAST_DEPTH = 1e-2  # metres; bounds the inverse of a metric teacher's depth
Key = TypeVar("Key")


class Teacher:
    """A Depth Anything V2 of either kind: relative models write inverse depth, metric ones depth, which is inverted.

    Args:
        model: in evaluation mode, on its device.
        processor: the checkpoint's own image processor.
    """

    def __init__(self, *, model: DepthAnythingForDepthEstimation, processor: DPTImageProcessor) -> None:
        self.model, self.processor = model, processor

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
        """The image (RGB) as the model takes it: (3, h, w)."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    @torch.inference_mode()
    def inverse_depth(self, pixels: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
        """Inverse depth maps, near = high, >= 0: in 1/m from a metric teacher, else relative.

        Args:
            pixels: what `pixels` gave for each image, all of one shape.
            sizes: (height, width) that each map is resized to (bicubic, as `transformers`' own pipeline does).
        """
        batch = torch.stack(list(pixels)).to(self.model.device, self.model.dtype)
        predicted_Bhw = self.model(batch).predicted_depth.float()
        maps = []
        for predicted_hw, size in zip(predicted_Bhw, sizes, strict=True):
            depth_HW = F.interpolate(predicted_hw[None, None], size=size, mode="bicubic", align_corners=False)[0, 0]
            if self.model.config.depth_estimation_type == "metric":
                depth_HW = 1 / depth_HW.clamp_min(LEAST_DEPTH)
            maps.append(depth_HW.clamp_min(0).cpu().numpy())
        return maps


def stored_size(*, height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) of a map: the image's, or scaled down so that the longer side has `long_side` pixels."""
    factor = min(1.0, long_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def batches(items: Iterable[tuple[Key, torch.Tensor]], *, size: int) -> Iterator[list[tuple[Key, torch.Tensor]]]:
    """Group (key, pixels) into lists of at most `size` whose pixels have one shape; order within a shape is kept."""
    waiting: dict[torch.Size, list[tuple[Key, torch.Tensor]]] = defaultdict(list)
    for key, pixels in items:
        group = waiting[pixels.shape]
        group.append((key, pixels))
        if len(group) == size:
            yield waiting.pop(pixels.shape)
    yield from waiting.values()
