"""The bridge from the language model to SAM2: hidden state of `[SEG]` -> prompt embedding -> mask.

Source: Sa2VA (arXiv 2501.04001): Linear(d, d) - ReLU - Linear(d, 256) turns the last hidden state at `[SEG]` into a sparse
prompt of SAM2's mask decoder; one `[SEG]` is one object; SAM2 sees the image by plain resize. Frozen: the image and the
prompt encoder. Trained: the MLP and the mask decoder.

What lies between the prompt and the mask is a `Wiring`, in training and prediction alike:

| | ``perceptio`` (ours) | ``sa2va`` (Sa2VA's code) |
|---|---|---|
| the image becomes a square | bilinear with antialiasing, as the `sam2` package does it | bicubic on bytes, by Pillow |
| sparse prompts | the prompt alone | two padding points, then the prompt |
| the mask | of the single-mask token | of tokens 1 to 3, the one of the highest predicted IoU |
| to the image's own size | bilinear | bilinear to the square, then bilinear |

Weights that learned in one wiring segment badly in the other.
"""

from collections.abc import Sequence
from typing import Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from perceptio_core.segmentation.sam2 import ImageFeatures, decode_masks, encode_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1; SAM2's
Wiring = Literal["perceptio", "sa2va"]
WIRINGS: tuple[Wiring, ...] = get_args(Wiring)


def unread(wiring: Wiring) -> tuple[str, ...]:
    """Prefixes of the mask decoder's parameters that no gradient of a mask reaches: those of other masks, and of scores.

    Training them is not only useless: a parameter without a gradient stalls distributed training, and weight decay would wear
    away one whose gradient is zero.
    """
    other_masks = (0,) if wiring == "sa2va" else (1, 2, 3)
    heads = ("iou_prediction_head.", "pred_obj_score_head.")
    return (*heads, *(f"output_hypernetworks_mlps.{token}." for token in other_masks))


def sam2_pixels(images: Sequence[np.ndarray], *, size: int, wiring: Wiring = "perceptio") -> Tensor:
    """Images as SAM2 wants them: resized to a square without regard to their shape, then normalised.

    Args:
        images: RGB, each (H, W, 3) uint8 of any size.
        size: S, the `image_size` of the model.
        wiring: how they are resized.

    Returns:
        (B, 3, S, S) float32.

    Raises:
        ValueError: an image is not (H, W, 3) uint8.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    squares = []
    for number, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"image {number}: {image.shape} {image.dtype}; allowed is (H, W, 3) uint8, not empty")
        if wiring == "sa2va":
            image = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        if pixels.shape[2:] != (size, size):
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        squares.append((pixels[0] - mean) / std)
    return torch.stack(squares) if squares else torch.empty(0, 3, size, size)


def to_original(logits_Mhw: Tensor, sizes_M: Sequence[tuple[int, int]], *, through: int | None = None) -> list[np.ndarray]:
    """Masks at the resolution of their images: logits resized (bilinear), then positive or not.

    Args:
        logits_Mhw: mask logits at any resolution.
        sizes_M: (height, width) in pixels of the image of each mask.
        through: side of a square that the logits are resized to first; none: straight to the image's size.

    Returns:
        M arrays (height, width) bool.
    """
    masks = []
    for logits, size in zip(logits_Mhw.detach(), sizes_M, strict=True):
        resized = logits[None, None].float()
        for step in (size,) if through is None else ((through, through), size):
            resized = F.interpolate(resized, size=step, mode="bilinear", align_corners=False)
        masks.append((resized[0, 0] > 0).cpu().numpy())
    return masks


class SegmentationBridge(nn.Module):
    """Prompt MLP and SAM2.

    Args:
        sam: the model; its encoders are frozen here, its mask decoder trains (but for the heads that are never read).
        hidden_dim: d, width of the language model.
        wiring: one of `WIRINGS`.
    """

    def __init__(self, *, sam: SAM2Base, hidden_dim: int, wiring: Wiring = "perceptio") -> None:
        super().__init__()
        self.sam, self.wiring = sam, wiring
        self.prompt = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, sam.hidden_dim))
        sam.requires_grad_(False)
        self.train_decoder()
        self.train(self.training)

    def train_decoder(self) -> None:
        """Let the mask decoder train, but for what is `unread`."""
        for name, parameter in self.sam.sam_mask_decoder.named_parameters():
            parameter.requires_grad_(not name.startswith(unread(self.wiring)))

    @property
    def image_size(self) -> int:
        """S, the side in pixels of the square that SAM2 sees."""
        return int(self.sam.image_size)

    def train(self, mode: bool = True) -> Self:
        """Switch the trained parts; the frozen ones stay in evaluation mode (no stochastic depth)."""
        super().train(mode)
        self.sam.eval()
        self.sam.sam_mask_decoder.train(mode)
        return self

    @torch.no_grad()
    def image_features(self, pixels_B3SS: Tensor) -> ImageFeatures:
        """Features of images from `sam2_pixels`, at least one; they depend on nothing that is trained."""
        return encode_images(self.sam, pixels_B3SS.to(next(self.sam.image_encoder.parameters()).dtype))

    def masks(self, features: ImageFeatures, *, image_index_M: Tensor, hidden_MD: Tensor) -> Tensor:
        """Mask logits of M `[SEG]` tokens.

        Args:
            features: of the images of the batch.
            image_index_M: int64, the row of `features` that each token is about.
            hidden_MD: last hidden state of the language model at each `[SEG]`.

        Returns:
            (M, 4h, 4w) float32 logits, a quarter of S a side. For M = 0 one mask is decoded and dropped: the empty
            result still leads to all trainable parameters, as distributed training needs.
        """
        masks = len(hidden_MD)
        if masks == 0:
            hidden_MD = torch.cat([hidden_MD, hidden_MD.new_zeros(1, hidden_MD.shape[1])])
            image_index_M = image_index_M.new_zeros(1)
        prompts = self.prompt(hidden_MD.to(next(self.prompt.parameters()).dtype))[:, None]
        best_of_three = self.wiring == "sa2va"
        if best_of_three:
            # The package puts one in the place of points that are not given, and its prompt encoder another in that of a box.
            padding = self.sam.sam_prompt_encoder.not_a_point_embed.weight.to(prompts.dtype).expand(len(prompts), 2, -1)
            prompts = torch.cat([padding, prompts], dim=1)
        return decode_masks(self.sam, features, image_index_M=image_index_M, sparse_MNC=prompts, best_of_three=best_of_three)[
            :masks
        ]

    def at_original_size(self, logits_Mhw: Tensor, sizes_M: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """`to_original` of this wiring."""
        return to_original(logits_Mhw, sizes_M, through=self.image_size if self.wiring == "sa2va" else None)
