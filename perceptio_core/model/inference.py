"""Asking a checkpoint: images and questions in; answers, masks and depth maps out.

Greedy decoding by the grammar, batched with left padding. The hidden state at each ``[SEG]`` is kept while the answer is
written, so masks cost no second pass through the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from perceptio_core.grammar import Parsed
from perceptio_core.model.decoding import GrammarLogitsProcessor, decode
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.model.processing import PerceptioProcessor
from perceptio_core.segmentation.bridge import sam2_pixels, to_original


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model said about one image.

    Attributes:
        raw: the whole answer with perception tokens, without the end token.
        text: the answer's text.
        masks: one bool (H, W) at the image's own size per [SEG].
        depth_codes: (N,) int64 in [0, K), row-major; None without a depth span.
        depth_map: (R, R) float32 decoded from them, in [-1, 1] up to the decoder's overshoot, near = high; or None.
    """

    raw: str
    text: str
    masks: list[NDArray[np.bool_]]
    depth_codes: NDArray[np.int64] | None
    depth_map: NDArray[np.float32] | None


class Perceptor:
    """A checkpoint, ready to be asked.

    Args:
        model: without adapters or with; put into evaluation mode.
        processor: of the same checkpoint.
        batch_size: most questions per pass, >= 1.
    """

    def __init__(
        self, *, model: PerceptioForConditionalGeneration, processor: PerceptioProcessor, batch_size: int = 64
    ) -> None:
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

    @classmethod
    def from_pretrained(cls, folder: Path, *, device: str | None = None, batch_size: int = 64) -> Self:
        """Read a checkpoint folder of co-training; it holds all parts, SAM2 and codebook included.

        Args:
            folder: the checkpoint.
            device: torch device; by default the GPU where there is one.
            batch_size: most questions per pass.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = PerceptioForConditionalGeneration.from_pretrained(folder)
        return cls(model=model.to(device), processor=PerceptioProcessor.from_pretrained(folder), batch_size=batch_size)

    def predict(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        segment: bool | None = None,
        depth: bool | None = None,
        depth_codes: NDArray[np.int64] | None = None,
        max_new_tokens: int = 32,
    ) -> list[Prediction]:
        """Ask one question about each image.

        Args:
            images: any mode and size.
            questions: one per image.
            segment: True: at least one mask; False: none; None: the model decides.
            depth: the same for the depth map.
            depth_codes: (images, N) codes in [0, K), row-major, that stand in the depth spans in place of the model's own.
            max_new_tokens: most tokens of *text*; perception tokens are not counted. 0: perception alone.

        Raises:
            ValueError: images and questions differ in number, a span is forced that the model was trained without, or the
                given codes are not N per image or not in [0, K).
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images but {len(questions)} questions")
        predictions: list[Prediction] = []
        for start in range(0, len(images), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            rgb = [image.convert("RGB") for image in images[chunk]]
            predictions += self._predict(
                rgb,
                questions[chunk],
                segment=segment,
                depth=depth,
                depth_codes=None if depth_codes is None else depth_codes[chunk],
                max_text=max_new_tokens,
            )
        return predictions

    @torch.inference_mode()
    def _predict(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        segment: bool | None,
        depth: bool | None,
        depth_codes: NDArray[np.int64] | None,
        max_text: int,
    ) -> list[Prediction]:
        config = self.model.config
        prompts = self.processor.prompts(images, questions)
        constraint = GrammarLogitsProcessor(
            grammar=config.grammar,
            vocabulary=config.vocabulary,
            end_id=config.end_token_id,
            segment=segment,
            depth=depth,
            max_text_tokens=max_text,
            never=self.processor.vlm.image_token_ids,
            depth_codes_BN=None if depth_codes is None else torch.from_numpy(depth_codes),
        )
        decoded = decode(self.model.vlm, prompts, constraint=constraint)
        parsed = [config.grammar.parse(ids, vocabulary=config.vocabulary, end_id=config.end_token_id) for ids in decoded.ids]
        masks = self._masks(images, decoded.seg_states)
        depth_maps = self._depth_maps(parsed)
        return [
            Prediction(
                raw=self.processor.decode(ids[:-1]),
                text=self.processor.decode(row.text_ids).strip(),
                masks=row_masks,
                depth_codes=None if row.depth_codes is None else np.asarray(row.depth_codes, dtype=np.int64),
                depth_map=depth_map,
            )
            for ids, row, row_masks, depth_map in zip(decoded.ids, parsed, masks, depth_maps, strict=True)
        ]

    def _masks(self, images: Sequence[Image.Image], states: Sequence[Tensor]) -> list[list[NDArray[np.bool_]]]:
        masks: list[list[NDArray[np.bool_]]] = [[] for _ in images]
        rows = [row for row, states_MD in enumerate(states) if len(states_MD)]
        if not rows:
            return masks
        bridge, device = self.model.bridge, self.model.device
        pixels = sam2_pixels([np.array(images[row]) for row in rows], size=self.model.config.sam_size)
        owners = [i for i, row in enumerate(rows) for _ in states[row]]
        logits_Mhw = bridge.masks(
            bridge.image_features(pixels.to(device)),
            image_index_M=torch.tensor(owners, device=device),
            hidden_MD=torch.cat([states[row] for row in rows]),
        )
        sizes = [(images[rows[owner]].height, images[rows[owner]].width) for owner in owners]
        for owner, mask in zip(owners, to_original(logits_Mhw, sizes), strict=True):
            masks[rows[owner]].append(mask)
        return masks

    def _depth_maps(self, parsed: Sequence[Parsed]) -> list[NDArray[np.float32] | None]:
        rows = [row for row, answer in enumerate(parsed) if answer.depth_codes is not None]
        maps: list[NDArray[np.float32] | None] = [None] * len(parsed)
        if rows:
            codes_BN = torch.tensor([parsed[row].depth_codes for row in rows], device=self.model.device)
            for row, depth in zip(rows, self.model.codebook.decode(codes_BN), strict=True):
                maps[row] = depth[0].float().cpu().numpy()
        return maps
