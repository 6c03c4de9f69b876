"""Configuration of a Perceptio checkpoint: its three parts, its added tokens, its grammar."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, InternVLConfig, PreTrainedConfig

from perceptio_core.grammar import PAPER_ORDER, Grammar
from perceptio_core.segmentation.bridge import Wiring
from perceptio_core.vocabulary import Vocabulary

LOSSES = ("llm", "seg_ce", "seg_dice", "marker", "token", "count", "reconstruction")


@strict
class PerceptioConfig(PreTrainedConfig):
    r"""What `PerceptioForConditionalGeneration` is made of.

    Args:
        vlm_config: InternVL's configuration, with the added tokens in its vocabulary.
        sam2_config: what `perceptio_core.segmentation` builds the SAM2 model from.
        codebook_config: what `perceptio_core.depth.codebook` builds the VQ-VAE from.
        token_ids: the fields of `Vocabulary`.
        end_token_id: the token that ends an assistant's turn.
        order: spans that are switched on, in the order they are written.
        loss_weights: weight >= 0 of each of `LOSSES` in the total; a loss of weight 0 is not computed.
        max_tiles: most 1:1 tiles that an image is cut into for the vision tower (a thumbnail comes on top where it is
            more than one); 1 = the whole image as a single tile.
        segmentation_wiring: how SAM2 is asked and its masks are read, see `perceptio_core.segmentation.bridge`.
    """

    model_type = "perceptio"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {"vlm_config": InternVLConfig}

    vlm_config: dict[str, Any] | PreTrainedConfig | None = None
    sam2_config: dict[str, Any] | None = None
    codebook_config: dict[str, Any] | None = None
    token_ids: dict[str, int] | None = None
    end_token_id: int = 0
    depth_tokens: int = 100
    order: list[str] | tuple[str, ...] = PAPER_ORDER
    loss_weights: dict[str, float] | None = None
    max_tiles: int = 1
    segmentation_wiring: Wiring = "perceptio"

    def __post_init__(self, **kwargs: Any) -> None:
        # Versions of `transformers` before `sub_configs_defaults` leave what a file says of a part a plain mapping.
        if isinstance(self.vlm_config, dict):
            self.vlm_config = InternVLConfig(**self.vlm_config)
        super().__post_init__(**kwargs)

    @property
    def sam_size(self) -> int:
        """Side in pixels of the square that SAM2 sees."""
        return int((self.sam2_config or {})["image_size"])

    @property
    def vocabulary(self) -> Vocabulary:
        """Ids of the added tokens."""
        return Vocabulary(**(self.token_ids or {}))

    @property
    def grammar(self) -> Grammar:
        """What an answer may hold."""
        return Grammar(order=tuple(self.order), depth_tokens=self.depth_tokens)  # type: ignore[arg-type]  # checked there


AutoConfig.register(PerceptioConfig.model_type, PerceptioConfig, exist_ok=True)
