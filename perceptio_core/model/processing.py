"""From images and texts to the tensors that the model takes: chat template, image tiles, roles, padding.

Built on the base model's own `InternVLProcessor` (tokenizer, tiles, template). Texts of users and data sets are encoded
as plain text: a question that contains ``[SEG]`` or an image placeholder cannot disturb the sequence. Only in answers of
earlier turns, which are to be the model's own, are perception tokens what they spell. Nothing here changes after
construction, so one processor serves many threads.
"""

# ruff: noqa: N815 (shape suffixes of fields are upper case)

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, InternVLProcessor, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME

from perceptio_core.grammar import Role
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.configuration import PerceptioConfig
from perceptio_core.rgb import to_rgb
from perceptio_core.segmentation.bridge import sam2_pixels
from perceptio_core.vocabulary import DEPTH_END, DEPTH_START, SEG, depth_token

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")

_PERCEPTION_TOKEN = re.compile(rf"({re.escape(SEG)}|{re.escape(DEPTH_START)}|{re.escape(DEPTH_END)}|<depth_\d+>)")
_SLOT = re.compile("\x00[QA]\x00")


class TrainingSample(Protocol):
    """What `collate` reads of a sample."""

    @property
    def key(self) -> str:
        """Name for messages."""

    @property
    def image(self) -> Image.Image:
        """RGB."""

    @property
    def turns(self) -> Sequence[tuple[str, str | int]]:
        """(question, answer) pairs, at least one; the depth span is written before the first answer. A number in the place of
        an answer is that depth code.
        """

    @property
    def masks(self) -> Sequence[NDArray[np.bool_]]:
        """One bool mask at the image's size per object to segment; empty for none."""

    @property
    def mask_turns(self) -> Sequence[int]:
        """Of each mask, the turn whose answer holds its [SEG], ascending."""

    @property
    def depth_codes(self) -> Sequence[int] | None:
        """N codes in [0, K), or None."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Left-padded prompts for `PerceptioForConditionalGeneration.generate`.

    Attributes:
        input_ids_BT, attention_mask_BT: int64.
        pixels_PCHW: float tiles of all images, one image after the other.
        images: RGB uint8 (H, W, 3) each, for the masks.
        image_token_ids: what stands for images in prompts and is never written.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    pixels_PCHW: Tensor
    images: tuple[NDArray[np.uint8], ...]
    image_token_ids: tuple[int, ...]


class PerceptioProcessor:
    """Makes training batches and prompts.

    Args:
        vlm: the base model's processor, its tokenizer with the added tokens.
        config: of the model that the tensors are for.

    Raises:
        ValueError: the chat template is not of the known kind: an image placeholder before the first question, every
            answer closed by `config.end_token_id`.
    """

    def __init__(self, *, vlm: InternVLProcessor, config: PerceptioConfig) -> None:
        self.vlm, self.config = vlm, config
        self._special = Tokenizer.from_str(vlm.tokenizer.backend_tokenizer.to_str())
        self._special.no_padding()
        self._special.no_truncation()
        self._plain = Tokenizer.from_str(self._special.to_str())
        self._plain.encode_special_tokens = True
        # The template's text around the contents of two turns: before Q, between Q and A, between turns, after the last.
        fragments = _SLOT.split(_render(vlm, turns=2))
        self._before, self._within, between, _, _ = [self._ids(self._special, text) for text in fragments]
        if between[:1] != [config.end_token_id]:
            raise ValueError(f"the chat template closes answers with {fragments[2]!r}, not with id {config.end_token_id}")
        if self._before.count(vlm.image_token_id) != 1:
            raise ValueError(f"the chat template holds no single image placeholder before the question: {fragments[0]!r}")
        self._between = between[1:]
        pad = vlm.tokenizer.pad_token_id
        self._pad_id = config.end_token_id if pad is None else int(pad)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, with the added tokens and the chat template."""
        return self.vlm.tokenizer

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> PerceptioProcessor:
        """Read what `save_pretrained` wrote.

        Args:
            name: folder, or a repository of the hub.
            options: where files come from (`_HUB_OPTIONS`); others, which `AutoProcessor` adds, have no meaning here.
        """
        hub = {option: options[option] for option in _HUB_OPTIONS if option in options}
        return cls(vlm=InternVLProcessor.from_pretrained(name, **hub), config=AutoConfig.from_pretrained(name, **hub))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer, image processor and chat template, and the configuration where the model has not written it."""
        self.vlm.save_pretrained(folder)
        path = Path(folder) / PROCESSOR_NAME
        written = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(written | {"processor_class": type(self).__name__}, indent=2) + "\n", encoding="utf-8")
        if not (Path(folder) / CONFIG_NAME).is_file():
            self.config.save_pretrained(folder)

    def collate(self, samples: Sequence[TrainingSample]) -> PerceptioBatch:
        """Make a training batch.

        Raises:
            ValueError: a sample has no turns, a wrong number of depth codes or unknown ones, a mask of another size than its
                image, or turns of masks that do not fit; names the sample.
        """
        pixels, tiles = self._pixels([sample.image for sample in samples])
        ids, roles = zip(*(self._sequence(s, tiles=n) for s, n in zip(samples, tiles, strict=True)), strict=True)
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

    def __call__(
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
        rows = [self._dialogue(past, question, tiles=n) for past, question, n in zip(turns, questions, tiles, strict=True)]
        return Prompts(
            input_ids_BT=_pad_left(rows, value=self._pad_id),
            attention_mask_BT=_pad_left([[1] * len(row) for row in rows], value=0),
            pixels_PCHW=pixels,
            images=tuple(np.array(image) for image in rgb),
            image_token_ids=tuple(self.vlm.image_token_ids),
        )

    def estimated_tokens(self, *, sizes_S2: NDArray[np.integer], characters_S: NDArray[np.integer]) -> NDArray[np.int64]:
        """About how long each sample's sequence will be (S), without its image or tokenizer: to divide work evenly.

        The image's tokens are exact, its text is taken for a token every four characters (ours), and what all samples have in
        common is left out.

        Args:
            sizes_S2: width and height of each image.
            characters_S: of all its turns.
        """
        kinds, kind_S = np.unique(sizes_S2, axis=0, return_inverse=True)
        most = self.config.max_tiles
        cut = {"crop_to_patches": most > 1, "min_patches": 1, "max_patches": most}
        count = self.vlm.image_processor.get_number_of_image_patches
        tiles = np.array([count(int(height), int(width), dict(cut)) for width, height in kinds])
        return np.asarray(tiles[kind_S.reshape(-1)] * self.vlm.image_seq_length + characters_S // 4, np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self._special.decode(list(ids), skip_special_tokens=False))

    def _dialogue(self, history: Sequence[tuple[str, str]], question: str, *, tiles: int) -> list[int]:
        """Token ids of the turns so far and of a question, up to where its answer begins."""
        questions = [*(asked for asked, _ in history), question]
        ids = self._prompt(questions[0], tiles=tiles)
        for (_, answer), follow_up in zip(history, questions[1:], strict=True):
            ids += [*self._answer(answer), self.config.end_token_id, *self._follow_up(follow_up)]
        return ids

    def _answer(self, raw: str) -> list[int]:
        """Token ids of an answer that the model wrote; all but its perception tokens is plain text."""
        added = self.config.vocabulary.id_of
        pieces = _PERCEPTION_TOKEN.split(raw)
        return list(
            chain.from_iterable([added[piece]] if piece in added else self._ids(self._plain, piece) for piece in pieces)
        )

    def _follow_up(self, question: str) -> list[int]:
        """Token ids from behind an answer's end token to where the next answer begins."""
        return [*self._between, *self._ids(self._plain, question), *self._within]

    def _prompt(self, question: str, *, tiles: int) -> list[int]:
        image = [self.vlm.start_image_token_id, *[self.vlm.image_token_id] * (tiles * self.vlm.image_seq_length)]
        place = self._before.index(self.vlm.image_token_id)
        before = [*self._before[:place], *image, self.vlm.end_image_token_id, *self._before[place + 1 :]]
        return [*before, *self._ids(self._plain, question), *self._within]

    def _sequence(self, sample: TrainingSample, *, tiles: int) -> tuple[list[int], list[int]]:
        """Token ids and roles of a whole conversation, the last end token included."""
        if not sample.turns:
            raise ValueError(f"{sample.key}: a sample needs at least one turn")
        mask_turns = list(sample.mask_turns)
        in_order = mask_turns == sorted(mask_turns) and set(mask_turns) <= set(range(len(sample.turns)))
        if len(mask_turns) != len(sample.masks) or not in_order:
            raise ValueError(
                f"{sample.key}: {len(sample.masks)} masks in {len(sample.turns)} turns need as many mask_turns, ascending "
                f"from 0, not {mask_turns}"
            )
        grammar, vocabulary = self.config.grammar, self.config.vocabulary
        perception = {Role.SEG, Role.DEPTH_START, Role.DEPTH_CODE, Role.DEPTH_END}
        ids: list[int] = []
        roles: list[int] = []
        for turn, (question, answer) in enumerate(sample.turns):
            prompt = self._prompt(question, tiles=tiles) if turn == 0 else self._follow_up(question)
            masks, codes = mask_turns.count(turn), sample.depth_codes if turn == 0 else None
            for code in (*(codes or ()), *([answer] if isinstance(answer, int) else ())):
                if not 0 <= code < vocabulary.num_codes:
                    raise ValueError(f"{sample.key}: depth code {code}; the model's are 0 to {vocabulary.num_codes - 1}")
            ids += prompt
            roles += [Role.PROMPT] * len(prompt)
            try:
                pieces = grammar.pieces(masks=masks, depth_codes=codes, answer=answer if isinstance(answer, str) else "")
            except ValueError as error:
                raise ValueError(f"{sample.key}: {error}") from error
            for role, text in pieces:
                piece = [vocabulary.id_of[text]] if role in perception else self._ids(self._plain, text)
                ids += piece
                roles += [role] * len(piece)
            if isinstance(answer, int):
                ids.append(vocabulary.id_of[depth_token(answer)])
                roles.append(Role.ANSWER)
            ids.append(self.config.end_token_id)
            roles.append(Role.END)
        return ids, roles

    def _pixels(self, images: Sequence[Image.Image]) -> tuple[Tensor, list[int]]:
        """Tiles of all images, and the number of tiles of each."""
        most = self.config.max_tiles
        features = self.vlm.image_processor(
            list(images), crop_to_patches=most > 1, min_patches=1, max_patches=most, return_tensors="pt"
        )
        return features["pixel_values"], [int(n) for n in features["num_patches"]]

    @staticmethod
    def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _render(vlm: InternVLProcessor, *, turns: int) -> str:
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        image = [{"type": "image"}] if turn == 0 else []
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": "\x00Q\x00"}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": "\x00A\x00"}]})
    return str(vlm.apply_chat_template(messages, tokenize=False))


def _pad_left(rows: Sequence[Sequence[int]], *, value: int) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[value] * (longest - len(row)) + list(row) for row in rows], dtype=torch.int64)


def _mask(sample: TrainingSample, mask: NDArray[np.bool_]) -> Tensor:
    size = (sample.image.height, sample.image.width)
    if mask.shape != size:
        raise ValueError(f"{sample.key}: a mask is {mask.shape}, its image {size} (height, width)")
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.bool_))


AutoProcessor.register(PerceptioConfig, PerceptioProcessor, exist_ok=True)
