"""From images and texts to the tensors that the model takes: chat template, image tiles, roles, padding.

The base model's own `InternVLProcessor` (tokenizer, tiles, template) with what training and masks need besides. Nothing here
changes after construction, so one processor serves many threads.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, GotOcr2ImageProcessorPil, InternVLProcessor

from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.chats import picture, read_chat
from perceptio_core.model.configuration import PerceptioConfig
from perceptio_core.model.dialogue import ANSWER_SLOT, QUESTION_SLOT, Dialogue, TrainingSample
from perceptio_core.rgb import to_rgb
from perceptio_core.segmentation.bridge import sam2_pixels


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Left-padded prompts for `PerceptioForConditionalGeneration.answer`.

    Attributes:
        input_ids_BT, attention_mask_BT: int64.
        pixels_PCHW: float tiles of all images, one image after the other.
        images: RGB uint8 (H, W, 3) each, for the masks.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    pixels_PCHW: Tensor
    images: tuple[NDArray[np.uint8], ...]


class PerceptioProcessor(InternVLProcessor):
    """Makes training batches and prompts.

    Called as any processor of `transformers`, it makes the inputs of `PerceptioForConditionalGeneration.generate`, so that
    ``pipeline("image-text-to-text")`` answers; `prompts` makes those of `answer`, which gives masks and depth maps too.
    `save_pretrained` writes everything that `from_pretrained` needs, the configuration included.

    Args:
        image_processor: of the base model; its tiles are cut by Pillow, as InternVL's own code cuts them, whichever backend
            it is given with.
        tokenizer: of the base model, with the added tokens.
        video_processor: of the base model, and without use here.
        image_seq_length: tokens per tile.
        chat_template: of the base model.
        config: of the model that the tensors are for.

    Raises:
        ValueError: there is no configuration, or the chat template is not of the known kind: an image placeholder before the
            first question, every answer closed by `config.end_token_id`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        config: PerceptioConfig | dict[str, Any] | None = None,
    ) -> None:
        if config is None:
            raise ValueError("there must be the model's configuration: processor_config.json holds none as `config`")
        self.config = PerceptioConfig.from_dict(config) if isinstance(config, dict) else config
        most = self.config.max_tiles
        self._tiling = {"crop_to_patches": most > 1, "min_patches": 1, "max_patches": most}
        super().__init__(
            GotOcr2ImageProcessorPil.from_dict(image_processor.to_dict() | self._tiling),
            tokenizer,
            video_processor,
            image_seq_length=image_seq_length,
            chat_template=chat_template,
        )
        self._dialogue = Dialogue(
            tokenizer.backend_tokenizer,
            self._rendered(turns=2),
            config=self.config,
            image_ids=(self.start_image_token_id, self.image_token_id, self.end_image_token_id),
            tokens_per_tile=image_seq_length,
        )
        self.pad_id = self.config.end_token_id if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    @classmethod
    def of(cls, base: InternVLProcessor, *, config: PerceptioConfig) -> PerceptioProcessor:
        """From the base model's processor, whose tokenizer has the added tokens."""
        parts = ("image_processor", "tokenizer", "video_processor", "image_seq_length", "chat_template")
        return cls(**{part: getattr(base, part) for part in parts}, config=config)

    def collate(self, samples: Sequence[TrainingSample]) -> PerceptioBatch:
        """Make a training batch.

        Raises:
            ValueError: a sample has no turns, a wrong number of depth codes or unknown ones, a mask of another size than its
                image, or turns of masks that do not fit; names the sample.
        """
        pixels, tiles = self._pixels([sample.image for sample in samples])
        ids, roles = zip(*(self._dialogue.sequence(s, tiles=n) for s, n in zip(samples, tiles, strict=True)), strict=True)
        segmented = [s for s in samples if len(s.masks)] if "segmentation" in self.config.order else []
        owners = [i for i, sample in enumerate(segmented) for _ in sample.masks]
        return PerceptioBatch(
            keys=tuple(sample.key for sample in samples),
            lengths=tuple(map(len, ids)),
            input_ids_T=torch.tensor(list(chain.from_iterable(ids))),
            positions_T=torch.cat([torch.arange(len(row)) for row in ids]),
            roles_T=torch.tensor(list(chain.from_iterable(roles))),
            pixels_PCHW=pixels,
            sam_pixels_SCHW=sam2_pixels(
                [np.array(s.image) for s in segmented], size=self.config.sam_size, wiring=self.config.segmentation_wiring
            ),
            masks_M=tuple(_mask(sample, mask) for sample in segmented for mask in sample.masks),
            mask_image_M=torch.tensor(owners, dtype=torch.int64),
        )

    def prompts(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        history: Sequence[Sequence[tuple[str, str]]] | None = None,
    ) -> Prompts:
        """Make left-padded prompts.

        Args:
            images: of any size, and of the modes that `perceptio_core.rgb.to_rgb` takes; upright, as
                `perceptio_core.data.images.open_image` opens files.
            questions: one per image.
            history: of each image, the turns before its question: (question, answer) pairs. An answer is the model's own, whole
                (`Prediction.raw`): unlike elsewhere, what spells a perception token in it is one. A depth span was trained
                in the first answer alone, so a follow-up is best asked without. Text that no tokenizer would cut as the
                model did comes back as other tokens of the same text.

        Raises:
            ValueError: images, questions and histories differ in number, there are none, a history holds other than pairs,
                or `to_rgb` refuses an image.
        """
        if not images or len(images) != len(questions):
            raise ValueError(f"{len(images)} images but {len(questions)} questions")
        if history is not None and len(history) != len(images):
            raise ValueError(f"{len(images)} images but {len(history)} histories")
        rgb = [to_rgb(image) for image in images]
        pixels, tiles = self._pixels(rgb)
        turns = history or [()] * len(images)
        if any(isinstance(turn, str) or len(turn) != 2 for past in turns for turn in past):
            raise ValueError(f"each image's history is a list of (question, answer) pairs; got {list(turns)}")
        rows = [
            self._dialogue.prompt(past, question, tiles=n) for past, question, n in zip(turns, questions, tiles, strict=True)
        ]
        return Prompts(
            input_ids_BT=_pad_left(rows, value=self.pad_id),
            attention_mask_BT=_pad_left([[1] * len(row) for row in rows], value=0),
            pixels_PCHW=pixels,
            images=tuple(np.array(image) for image in rgb),
        )

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, videos: Any = None, **options: Any
    ) -> BatchFeature:
        """Inputs of a model in the manner of `transformers`: input_ids and attention_mask (B, T), pixel_values (P, C, H, W).

        Args:
            images: one picture per text: PIL images, paths, or addresses; see `perceptio_core.model.chats.picture`.
            text: questions, or prompts as `apply_chat_template` renders them, which hold an image placeholder each. A question
                becomes what `prompts` makes of it; a rendered prompt is tokenized as `InternVLProcessor` does.
            videos: not known.
            options: for rendered prompts, as `InternVLProcessor` has them; questions are always padded left, as tensors.

        Raises:
            ValueError: there is no text, or not one picture per text, or a picture cannot be read.
        """
        if not text or videos is not None:
            raise ValueError("a PerceptioProcessor takes text and images, one image per text, and no videos")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = [picture(image) for image in _flat(images)]
        if any(self.image_token in one for one in texts):
            given: dict[str, Any] = {"padding": True, "return_tensors": "pt"} | options
            tiling = self._tiling | given.pop("images_kwargs", {})
            return super().__call__(images=pictures or None, text=texts, images_kwargs=tiling, **given)
        return _features(self.prompts(pictures, texts))

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **options: Any,
    ) -> Any:
        """A chat, or several, as text; with `tokenize` as the inputs of a model, the same that `prompts` makes.

        Args:
            conversation: messages {"role", "content"} as `perceptio_core.model.chats.read_chat` takes them, or a list of chats.
            chat_template: another template, for text.
            tokenize: whether token ids are wanted.
            return_dict: all inputs, and not the token ids alone.
            add_generation_prompt: whether the text ends where the answer begins; token ids always do.
            continue_final_message: whether an answer that is begun is to go on, for text.
            options: for text, as `ProcessorMixin.apply_chat_template` has them.

        Raises:
            ValueError: a chat is not of a form that the model was trained on; says which is.
        """
        if not tokenize:
            given = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
            return super().apply_chat_template(conversation, chat_template, **given, **options)
        if chat_template is not None or continue_final_message:
            raise ValueError("a chat is answered from its last question on, by its own template: no answer is continued")
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        chats = [read_chat(messages) for messages in ([conversation] if single else conversation)]
        prompts = self.prompts(
            [chat.image for chat in chats], [chat.question for chat in chats], history=[chat.history for chat in chats]
        )
        features = _features(prompts)
        return features if return_dict else features["input_ids"]

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True, **_: Any) -> list[str]:
        """Texts of what `generate` wrote, with the prompt before them where that is there too.

        Args:
            generated_outputs: token ids (B, T) or (T,).
            skip_special_tokens: leave out the perception tokens of the answer, so that it is `Prediction.text`, and the
                special tokens of the prompt; otherwise all that was written is there.
        """
        rows = np.atleast_2d(np.asarray(torch.as_tensor(generated_outputs).cpu())).tolist()
        return [self._dialogue.text(row) if skip_special_tokens else self.decode(row) for row in rows]

    def estimated_tokens(self, *, sizes_S2: NDArray[np.integer], characters_S: NDArray[np.integer]) -> NDArray[np.int64]:
        """About how long each sample's sequence will be (S), without its image or tokenizer: to divide work evenly.

        The image's tokens are exact, its text is taken for a token every four characters (ours), and what all samples have in
        common is left out.

        Args:
            sizes_S2: width and height of each image.
            characters_S: of all its turns.
        """
        kinds, kind_S = np.unique(sizes_S2, axis=0, return_inverse=True)
        count = self.image_processor.get_number_of_image_patches
        tiles = np.array([count(int(height), int(width), dict(self._tiling)) for width, height in kinds])
        return np.asarray(tiles[kind_S.reshape(-1)] * self.image_seq_length + characters_S // 4, np.int64)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids, by default with special tokens."""
        return self._dialogue.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, rows: Iterable[Iterable[int]], skip_special_tokens: bool = False) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def _pixels(self, images: Sequence[Image.Image]) -> tuple[Tensor, list[int]]:
        """Tiles of all images, and the number of tiles of each."""
        features = self.image_processor(list(images), **self._tiling, return_tensors="pt")
        return features["pixel_values"], [int(n) for n in features["num_patches"]]

    def _rendered(self, *, turns: int) -> str:
        messages: list[dict[str, Any]] = []
        for turn in range(turns):
            image = [{"type": "image"}] if turn == 0 else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": QUESTION_SLOT}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": ANSWER_SLOT}]})
        return str(self.apply_chat_template(messages))


def _flat(images: Any) -> list[Any]:
    """Pictures one after the other, however nested."""
    return (
        [one for image in images for one in _flat(image)]
        if isinstance(images, list | tuple)
        else [images] * (images is not None)
    )


def _features(prompts: Prompts) -> BatchFeature:
    return BatchFeature(
        {
            "input_ids": prompts.input_ids_BT,
            "attention_mask": prompts.attention_mask_BT,
            "pixel_values": prompts.pixels_PCHW,
        }
    )


def _pad_left(rows: Sequence[Sequence[int]], *, value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[value] * (longest - len(row)) + list(row) for row in rows], dtype=torch.int64)


def _mask(sample: TrainingSample, mask: NDArray[np.bool_]) -> Tensor:
    size = (sample.image.height, sample.image.width)
    if mask.shape != size:
        raise ValueError(f"{sample.key}: a mask is {mask.shape}, its image {size} (height, width)")
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.bool_))


AutoProcessor.register(PerceptioConfig, PerceptioProcessor, exist_ok=True)
