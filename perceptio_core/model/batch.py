"""One batch of training samples, as the model takes it."""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PerceptioBatch:
    """Token sequences, images and masks of B samples, packed: T tokens in one row, one sample after the other, no padding.

    Attributes:
        keys: the samples' names, for messages.
        lengths: tokens of each sample; their sum is T.
        input_ids_T: int64 token ids; the depth codes are in here, nowhere else.
        positions_T: int64 place of each token in its own sample, from 0.
        roles_T: int64 `perceptio_core.grammar.Role`.
        pixels_PCHW: float tiles for the vision tower, all samples' tiles one after the other.
        sam_pixels_SCHW: float images for SAM2, of the S <= B samples with [SEG] tokens only, in batch order.
        masks_M: bool target masks, each (H, W) of its own image, one per [SEG] token in the order of reading the batch.
        mask_image_M: int64, which of the S images each mask belongs to.
        own_codes: whether the depth spans are read with the codes that the model itself would write, in place of those in
            `input_ids_T`, which stay the targets.
    """

    keys: tuple[str, ...]
    lengths: tuple[int, ...]
    input_ids_T: Tensor
    positions_T: Tensor
    roles_T: Tensor
    pixels_PCHW: Tensor
    sam_pixels_SCHW: Tensor
    masks_M: tuple[Tensor, ...]
    mask_image_M: Tensor
    own_codes: bool = False

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PerceptioBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PerceptioBatch:
        """The same batch in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> PerceptioBatch:
        changed: dict[str, Any] = {"masks_M": tuple(change(mask) for mask in self.masks_M)}
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), Tensor):
                changed[field.name] = change(value)
        return replace(self, **changed)
