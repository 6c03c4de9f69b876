"""Other depth codes in place of the model's own: what its answers owe to what the codes say (ours).

    oracle   the teacher's codes of the very picture that is asked about, without its marks where the benchmark has it so
    random   each code drawn evenly from all, once per question
    zeroed   code 0 everywhere: a span that says nothing
    other    the teacher's codes of another picture of the benchmark

A model that reads its codes answers better with oracle ones than with its own, and not better than chance with the rest. One
that answers as well with random codes has not read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.depth.teacher import Teacher, stored_size
from perceptio_core.evaluation.benchmarks.benchmark import Item
from perceptio_core.params.evaluate import Replacement
from perceptio_core.seeds import stream

Codes = NDArray[np.int64]
Encode = Callable[[Sequence[Image.Image]], Codes]
"""Codes (B, N) in [0, K), row-major, of the teacher's depth maps of some pictures."""


def pictured(replacement: Replacement, items: Sequence[Item]) -> list[Item | None]:
    """For each item of a benchmark, the one whose picture its codes are of; None where they are of none.

    With "other" that is the nearest later item (the first comes after the last) with another picture.

    Raises:
        ValueError: another picture is wanted and all items have the same.
    """
    if replacement not in ("oracle", "other"):
        return [None] * len(items)
    shown = {item.item_id: item for item in items}
    if replacement == "other":
        # Backwards, twice around: the item after a run of one picture is the other picture of the whole run.
        following, last = None, items[0]
        for item in [*reversed(items), *reversed(items)]:
            if (item.unmarked or item.image) != (last.unmarked or last.image):
                following = last
            if following is not None:
                shown[item.item_id] = following
            last = item
        if following is None:
            raise ValueError("codes of another picture need at least two pictures; all questions are about one")
    found = (shown[item.item_id] for item in items)
    return [replace(item, image=item.unmarked) if item.unmarked else item for item in found]


@dataclass(frozen=True, kw_only=True)
class CodeMaker:
    """Makes what stands in for a model's depth codes.

    Attributes:
        encode: gives the codes of pictures; called for "oracle" and "other" alone.
        num_codes: K.
        depth_tokens: N.
        seed: of the codes that are drawn, each from [0, K), by seed and item.
    """

    encode: Encode
    num_codes: int
    depth_tokens: int
    seed: int

    def codes(self, replacement: Replacement, items: Sequence[Item], pictures: Sequence[Image.Image]) -> Codes:
        """(B, N) codes for some items; `pictures` are those of the items that `pictured` names."""
        match replacement:
            case "oracle" | "other":
                return self.encode(pictures)
            case "zeroed":
                return np.zeros((len(items), self.depth_tokens), np.int64)
            case "random":
                drawn = (stream("codes", self.seed, item.item_id) for item in items)
                return np.stack([rng.integers(self.num_codes, size=self.depth_tokens) for rng in drawn])


class TeacherEncoder:
    """Codes as `joint_shards` makes them: the teacher's depth map of a picture, through the codebook.

    Args:
        teacher: folder of the Depth Anything checkpoint; loaded when it is first needed.
        codebook: of the model that is asked.
        long_side: of the stored maps, as the `teacher_depth` section has it.
    """

    def __init__(self, *, teacher: Path, codebook: DepthCodebook, long_side: int) -> None:
        self._folder, self._codebook, self._long_side = teacher, codebook, long_side
        self._teacher: Teacher | None = None

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Codes:
        """Codes (B, N) of RGB pictures."""
        self._teacher = self._teacher or Teacher.from_pretrained(self._folder)
        maps = []
        for (width, height), alike in groupby(pictures, key=lambda picture: picture.size):
            size = stored_size(height=height, width=width, long_side=self._long_side)
            pixels = [self._teacher.pixels(picture) for picture in alike]
            maps += self._teacher.inverse_depth(pixels, [size] * len(pixels))
        normalised_B1RR = torch.stack([self._codebook.normalise(depth_HW) for depth_HW in maps])
        codes_BN: Codes = self._codebook.encode(normalised_B1RR.to(self._codebook.embedding.device)).cpu().numpy()
        return codes_BN
