"""Asking a checkpoint: images and questions in; answers, masks and depth maps out.

Greedy decoding by the grammar, batched with left padding. The hidden state at each ``[SEG]`` is caught while the answer is
written, so masks cost no second pass through the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import LogitsProcessorList

from perceptio_core.grammar import Parsed
from perceptio_core.model.decoding import GrammarLogitsProcessor
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
        max_new_tokens: int = 32,
    ) -> list[Prediction]:
        """Ask one question about each image.

        Args:
            images: any mode and size.
            questions: one per image.
            segment: True: at least one mask; False: none; None: the model decides.
            depth: the same for the depth map.
            max_new_tokens: most tokens of *text*; perception tokens are not counted.

        Raises:
            ValueError: images and questions differ in number, or a span is forced that the model was trained without.
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} images but {len(questions)} questions")
        predictions: list[Prediction] = []
        for start in range(0, len(images), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            rgb = [image.convert("RGB") for image in images[chunk]]
            predictions += self._predict(rgb, questions[chunk], segment=segment, depth=depth, max_text=max_new_tokens)
        return predictions

    @torch.inference_mode()
    def _predict(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        segment: bool | None,
        depth: bool | None,
        max_text: int,
    ) -> list[Prediction]:
        config = self.model.config
        prompts = self.processor.prompts(images, questions)
        grammar = GrammarLogitsProcessor(
            grammar=config.grammar,
            vocabulary=config.vocabulary,
            prompt_length=prompts.input_ids_BT.shape[1],
            end_id=config.end_token_id,
            segment=segment,
            depth=depth,
            max_text_tokens=max_text,
            never=self.processor.vlm.image_token_ids,
        )
        device = self.model.device
        with _LastHiddenStates(self.model.vlm.model) as caught:
            sequences = self.model.vlm.generate(
                input_ids=prompts.input_ids_BT.to(device),
                attention_mask=prompts.attention_mask_BT.to(device),
                pixel_values=prompts.pixels_PCHW.to(device, self.model.dtype),
                logits_processor=LogitsProcessorList([grammar]),
                max_new_tokens=grammar.max_masks + config.depth_tokens + 2 + max_text + 1,
                do_sample=False,
                num_beams=1,
                eos_token_id=config.end_token_id,
                pad_token_id=config.end_token_id,
            )
        answers = sequences[:, prompts.input_ids_BT.shape[1] :].tolist()
        parsed = [config.grammar.parse(answer, vocabulary=config.vocabulary, end_id=config.end_token_id) for answer in answers]
        masks = self._masks(images, parsed, caught.after_prompt())
        depth_maps = self._depth_maps(parsed)
        return [
            Prediction(
                raw=self.processor.decode(answer[: answer.index(config.end_token_id)]),
                text=self.processor.decode(row.text_ids).strip(),
                masks=row_masks,
                depth_codes=None if row.depth_codes is None else np.asarray(row.depth_codes, dtype=np.int64),
                depth_map=depth_map,
            )
            for answer, row, row_masks, depth_map in zip(answers, parsed, masks, depth_maps, strict=True)
        ]

    def _masks(
        self, images: Sequence[Image.Image], parsed: Sequence[Parsed], hidden_BTD: Tensor
    ) -> list[list[NDArray[np.bool_]]]:
        masks: list[list[NDArray[np.bool_]]] = [[] for _ in images]
        rows = [row for row, answer in enumerate(parsed) if answer.masks]
        if not rows:
            return masks
        bridge, device = self.model.bridge, self.model.device
        pixels = sam2_pixels([np.array(images[row]) for row in rows], size=self.model.config.sam_size)
        owners = [i for i, row in enumerate(rows) for _ in range(parsed[row].masks)]
        logits_Mhw = bridge.masks(
            bridge.image_features(pixels.to(device)),
            image_index_M=torch.tensor(owners, device=device),
            hidden_MD=torch.stack([hidden_BTD[row, place] for row in rows for place in parsed[row].seg_positions]),
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


class _LastHiddenStates:
    """Catches the last hidden state of the newest token at every step of `generate`.

    Step 0 reads the prompt; step i reads answer token i - 1, so its state is the one *at* that token.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._steps: list[Tensor] = []

    def __enter__(self) -> Self:
        def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._steps.append(output.last_hidden_state[:, -1])

        self._handle = self._module.register_forward_hook(catch)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def after_prompt(self) -> Tensor:
        """States at the answer's tokens: (B, T, D), without the last token, which no step reads."""
        steps = self._steps[1:] or [self._steps[0][:0]]
        return torch.stack(steps, dim=1)
