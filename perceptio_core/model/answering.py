"""Answers of the model: written greedily by the grammar, [SEG] drawn as masks, depth codes decoded into maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, InternVLForConditionalGeneration

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.grammar import Parsed
from perceptio_core.model.decoding import MAX_MASKS, Decoded, GrammarLogitsProcessor, decode, decoding
from perceptio_core.model.processing import Prompts
from perceptio_core.segmentation.bridge import SegmentationBridge, sam2_pixels
from perceptio_core.segmentation.sam2 import ImageFeatures

_WITHOUT_EFFECT = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "suppress_tokens",
    "transformers_version",
    "use_cache",
    "use_model_defaults",
}
"""Options of `transformers`' generate that greedy decoding by the grammar settles by itself."""

_UNSET = (None, False, 1)
"""Values, 1.0 and 0 among them, by which no such option asks for anything: one beam, temperature 1 or 0, no sampling."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One answer.

    Attributes:
        ids: all that was written, without the end token.
        parsed: the same taken apart: spans, and ids of the text.
        masks: one bool (H, W) at the image's own size per [SEG].
        depth_map: (R, R) float32 decoded from the depth codes, in [-1, 1] up to the decoder's overshoot, near = high; or None.
        passes: forward passes of the language model that read it.
    """

    ids: list[int]
    parsed: Parsed
    masks: list[NDArray[np.bool_]]
    depth_map: NDArray[np.float32] | None
    passes: int


class AnsweringMixin:
    """How `PerceptioForConditionalGeneration` answers; it has the parts."""

    config: Any  # a PerceptioConfig; `transformers` leaves the type open
    vlm: InternVLForConditionalGeneration
    bridge: SegmentationBridge
    codebook: DepthCodebook
    device: torch.device
    generation_config: Any

    @torch.inference_mode()
    def answer(
        self,
        prompts: Prompts,
        *,
        segment: bool | None = None,
        depth: bool | None = None,
        depth_codes: NDArray[np.int64] | None = None,
        max_masks: int = MAX_MASKS,
        max_new_tokens: int = 32,
    ) -> list[Generated]:
        """Write an answer to each prompt, greedily and by the grammar.

        The state at each ``[SEG]`` is kept while the answer is written, so masks cost no second pass.

        Args:
            prompts: of the processor.
            segment: True: at least one mask; False: none; None: the model decides.
            depth: the same for the depth map.
            depth_codes: (B, N) codes in [0, K), row-major, that stand in the depth spans in place of the model's own.
            max_masks: most masks of an answer, >= 1; a model that would write more is made to go on with what follows.
            max_new_tokens: most tokens of *text*; perception tokens are not counted. 0: perception alone.

        Raises:
            ValueError: a span is forced that the model was trained without, the given codes are not N per prompt or not in
                [0, K), or `max_masks` is below 1.
        """
        if depth_codes is not None and len(depth_codes) != len(prompts.images):
            raise ValueError(f"{len(prompts.images)} prompts but {len(depth_codes)} rows of depth codes")
        constraint = self._constraint(
            segment=segment, depth=depth, depth_codes=depth_codes, max_masks=max_masks, max_new_tokens=max_new_tokens
        )
        decoded = decode(self.vlm, prompts, constraint=constraint)
        return self._generated(decoded, masks=self._masks(prompts, decoded.seg_states))

    @torch.inference_mode()
    def answering(self, prompt: Prompts, **options: Any) -> Iterator[Generated]:
        """`answer` to one prompt, for one who watches: after each pass what is written by then, the whole answer last.

        A mask is there once its [SEG] is read; until the depth span is whole there is no depth map.

        Args:
            prompt: of the processor, one row.
            options: as `answer` has them.
        """
        constraint = self._constraint(**{"max_masks": MAX_MASKS, "max_new_tokens": 32} | options)
        features: ImageFeatures | None = None
        masks: list[list[NDArray[np.bool_]]] = [[]]
        for so_far in decoding(self.vlm, prompt, constraint=constraint):
            decoded = so_far()
            if sum(map(len, decoded.seg_states)) > sum(map(len, masks)):
                features = features or self._image_features(prompt.images)
                masks = self._masks(prompt, decoded.seg_states, features=features)
            (generated,) = self._generated(decoded, masks=masks)
            yield generated

    def _generated(self, decoded: Decoded, *, masks: Sequence[list[NDArray[np.bool_]]]) -> list[Generated]:
        """What was written, with its masks, taken apart; the end token goes."""
        config = self.config
        parsed = [config.grammar.parse(ids, vocabulary=config.vocabulary, end_id=config.end_token_id) for ids in decoded.ids]
        depth_maps = self._depth_maps(parsed)
        return [
            Generated(
                ids=ids[:-1] if one.ended else ids,
                parsed=one,
                masks=masks[row],
                depth_map=depth_maps[row],
                passes=decoded.passes[row],
            )
            for row, (ids, one) in enumerate(zip(decoded.ids, parsed, strict=True))
        ]

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        segment: bool | None = None,
        depth: bool | None = None,
        max_masks: int = MAX_MASKS,
        **options: Any,
    ) -> Tensor:
        """Token ids of prompts and answers, in the manner of `transformers`: what ``pipeline("image-text-to-text")`` calls.

        The answers are those of `answer`, without masks and depth maps.

        Args:
            input_ids: (B, T) prompts of the processor, padded left.
            attention_mask: (B, T); by default all ones.
            pixel_values: (P, C, H, W) tiles of all images.
            generation_config: options once more; those given beside it come first.
            segment: as `answer` has it, and so have `depth` and `max_masks`.
            depth: the same for the depth map.
            max_masks: most masks of an answer.
            options: `max_new_tokens`, most tokens of text, by default 32; others only with values that change nothing.

        Returns:
            (B, T + longest answer) int64; an answer is closed by the end token, and padded.

        Raises:
            ValueError: there are no prompts or no tiles, or an option asks for other than greedy decoding.
        """
        if input_ids is None or pixel_values is None:
            raise ValueError("generate needs input_ids and pixel_values, as the processor makes them of images and texts")
        given = (generation_config.to_diff_dict() if generation_config is not None else {}) | options
        max_new_tokens = given.pop("max_new_tokens", None)
        wanted = {name: value for name, value in given.items() if value is True or value not in _UNSET}
        if refused := sorted(wanted.keys() - _WITHOUT_EFFECT):
            raise ValueError(f"answers are decoded greedily, by the grammar; {', '.join(refused)} cannot be asked for")
        mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = Prompts(input_ids_BT=input_ids, attention_mask_BT=mask_BT, pixels_PCHW=pixel_values, images=())
        constraint = self._constraint(
            segment=segment, depth=depth, max_masks=max_masks, max_new_tokens=32 if max_new_tokens is None else max_new_tokens
        )
        answers = [torch.tensor(ids) for ids in decode(self.vlm, prompts, constraint=constraint).ids]
        pad = self.generation_config.pad_token_id
        padded = nn.utils.rnn.pad_sequence(
            answers, batch_first=True, padding_value=self.config.end_token_id if pad is None else pad
        )
        return torch.cat([input_ids, padded.to(input_ids.device)], 1)

    def _constraint(
        self,
        *,
        segment: bool | None,
        depth: bool | None,
        depth_codes: NDArray[np.int64] | None = None,
        max_masks: int,
        max_new_tokens: int,
    ) -> GrammarLogitsProcessor:
        return GrammarLogitsProcessor(
            grammar=self.config.grammar,
            vocabulary=self.config.vocabulary,
            end_id=self.config.end_token_id,
            segment=segment,
            depth=depth,
            max_masks=max_masks,
            max_text_tokens=max_new_tokens,
            never=self.generation_config.suppress_tokens or (),
            depth_codes_BN=None if depth_codes is None else torch.from_numpy(depth_codes),
        )

    def _image_features(self, images: Sequence[NDArray[np.uint8]]) -> ImageFeatures:
        pixels = sam2_pixels(images, size=self.config.sam_size, wiring=self.bridge.wiring)
        return self.bridge.image_features(pixels.to(self.device))

    def _masks(
        self, prompts: Prompts, states: Sequence[Tensor], *, features: ImageFeatures | None = None
    ) -> list[list[NDArray[np.bool_]]]:
        """Per prompt the masks of its [SEG] states; `features` are of the images of the prompts that have any, if known."""
        masks: list[list[NDArray[np.bool_]]] = [[] for _ in states]
        rows = [row for row, states_MD in enumerate(states) if len(states_MD)]
        if not rows:
            return masks
        owners = [i for i, row in enumerate(rows) for _ in states[row]]
        logits_Mhw = self.bridge.masks(
            features or self._image_features([prompts.images[row] for row in rows]),
            image_index_M=torch.tensor(owners, device=self.device),
            hidden_MD=torch.cat([states[row] for row in rows]),
        )
        sizes = [(height, width) for height, width, _ in (prompts.images[rows[owner]].shape for owner in owners)]
        for owner, mask in zip(owners, self.bridge.at_original_size(logits_Mhw, sizes), strict=True):
            masks[rows[owner]].append(mask)
        return masks

    def _depth_maps(self, parsed: Sequence[Parsed]) -> list[NDArray[np.float32] | None]:
        rows = [row for row, answer in enumerate(parsed) if answer.depth_codes is not None]
        maps: list[NDArray[np.float32] | None] = [None] * len(parsed)
        if rows:
            codes_BN = torch.tensor([parsed[row].depth_codes for row in rows], device=self.device)
            for row, depth in zip(rows, self.codebook.decode(codes_BN), strict=True):
                maps[row] = depth[0].float().cpu().numpy()
        return maps
