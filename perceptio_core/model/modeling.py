"""Perceptio: InternVL writes the sequence, SAM2's mask decoder draws what ``[SEG]`` means, the VQ-VAE reads depth codes.

One training step: image tiles and tokens -> InternVL -> last hidden states h (T, D), all samples in one row
    h at t - 1  -> output head, at supervised tokens only      -> llm, marker, token, count losses
    code logits -> soft merge of the codebook -> VQ-VAE decoder -> reconstruction loss
    h at [SEG]  -> prompt MLP -> SAM2 mask decoder              -> seg_ce, seg_dice losses (the state *at* [SEG], as Sa2VA)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from peft import LoraModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
)

from perceptio_core.depth.codebook import DepthCodebook
from perceptio_core.files import follow_umask
from perceptio_core.grammar import Role
from perceptio_core.model.answering import AnsweringMixin
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.configuration import LOSSES, PerceptioConfig
from perceptio_core.model.losses import (
    Predictions,
    count_loss,
    language_loss,
    marker_loss,
    predict,
    reconstruction_loss,
    token_loss,
)
from perceptio_core.model.packed_attention import PACKED, packed_places
from perceptio_core.model.xformers_attention import XFORMERS as XFORMERS  # so that it is registered
from perceptio_core.segmentation.bridge import SegmentationBridge
from perceptio_core.segmentation.losses import mask_losses
from perceptio_core.segmentation.sam2 import build_sam2
from perceptio_core.weights import require_used, settle_tying


class PerceptioForConditionalGeneration(PreTrainedModel, AnsweringMixin, GenerationMixin):
    """The whole model.

    Args:
        config: names the parts.
        vlm, bridge, codebook: ready parts; each that is left out is built from `config` with random weights, as
            `from_pretrained` needs it.
    """

    config_class = PerceptioConfig
    base_model_prefix = "perceptio"
    _no_split_modules = ["InternVLVisionLayer", "Qwen2DecoderLayer", "LlamaDecoderLayer"]  # noqa: RUF012 (the library's own form)
    # A bf16 base is saved as bf16; these parts are float32 whatever the base is.
    _keep_in_fp32_modules_strict = ["bridge", "codebook"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self,
        config: PerceptioConfig,
        *,
        vlm: InternVLForConditionalGeneration | None = None,
        bridge: SegmentationBridge | None = None,
        codebook: DepthCodebook | None = None,
    ) -> None:
        super().__init__(config)
        if vlm is None:
            # The dtype that `from_pretrained` is asked for goes one level deep; InternVL's parts are a level deeper.
            vlm_config = cast("InternVLConfig", config.vlm_config)
            for part in (vlm_config, vlm_config.text_config, vlm_config.vision_config):
                part.dtype = config.dtype
            vlm = InternVLForConditionalGeneration(vlm_config)
        self.vlm = vlm
        if self.vlm.config._attn_implementation == "sdpa":
            self.vlm.set_attn_implementation(PACKED)
        hidden = self.vlm.config.text_config.hidden_size
        if bridge is None:
            # transformers builds models on the meta device before it loads their weights; `sam2`, where there is a GPU, copies
            # a table to it on the way, and nothing can be copied from there.
            with torch.device("cpu"):
                sam = build_sam2(config.sam2_config or {})
                bridge = SegmentationBridge(sam=sam, hidden_dim=hidden, wiring=config.segmentation_wiring)
        self.bridge = bridge
        self.codebook = (codebook or DepthCodebook(**config.codebook_config or {})).requires_grad_(False)
        self.adapters: list[LoraModel] = []  # a list, so that torch does not take it for a part
        self.fresh_prompt = False  # whether the prompt MLP has still its random start; `join` knows
        self.post_init()

    @property
    def segments(self) -> bool:
        """Whether answers may hold [SEG]."""
        return "segmentation" in self.config.order

    def train(self, mode: bool = True) -> Self:
        """Switch the parts that train; the codebook stays in evaluation mode."""
        super().train(mode)
        self.codebook.eval()
        return self

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Read a checkpoint, as `PreTrainedModel.from_pretrained` has it.

        Raises:
            ValueError: weights are missing, not used, or of another shape than the configuration says; every one is named.
        """
        wants_report = options.pop("output_loading_info", False)
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = super().from_pretrained(*arguments, **options)
        require_used(report, source=model.name_or_path)
        settle_tying(model.vlm)
        return (model, report) if wants_report else model

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the checkpoint, as `PreTrainedModel.save_pretrained` has it.

        Raises:
            ValueError: the model holds adapters, under whose names of parameters it could not be loaded.
        """
        if self.adapters:
            raise ValueError("a model with adapters is not a checkpoint: merge them first (perceptio_core.model.adapters)")
        super().save_pretrained(save_directory, **kwargs)
        follow_umask(*Path(save_directory).glob("*.safetensors"))

    def checkpoint_layers(self, wanted: bool) -> None:
        """Gradient checkpointing of every layer of the language model and the vision tower, in place (arXiv 1604.06174).

        Not by ``gradient_checkpointing_enable``: that makes the outputs of all embeddings require a gradient, the patches' too,
        so that autograd goes back through a frozen tower, which is all for nothing; and it leaves them so for good. Only
        checkpoints of the reentrant kind need it.

        Args:
            wanted: whether layers keep their input only, and are computed a second time in the backward pass.
        """
        self._set_gradient_checkpointing(enable=wanted, gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: InternVL initialises itself, SAM2, bridge and codebook did so when they were built."""

    def forward(self, batch: PerceptioBatch) -> dict[str, Tensor]:
        """The losses of a batch, unweighted, and their weighted sum ``"total"``; those of weight 0 are left out.

        A loss of which the batch holds nothing is a zero that is connected to the graph.
        """
        own_codes = batch.own_codes and "depth" in self.config.order
        hidden_TD = self._hidden_states(self._with_own_codes(batch) if own_codes else batch)
        predictions = predict(
            hidden_TD=hidden_TD,
            head=self.vlm.get_output_embeddings(),
            input_ids_T=batch.input_ids_T,
            positions_T=batch.positions_T,
            roles_T=batch.roles_T,
        )
        weights = {name: self.config.loss_weights[name] for name in LOSSES if self.config.loss_weights[name] > 0}
        losses = self._sequence_losses(predictions, wanted=weights)
        if self.segments and {"seg_ce", "seg_dice"} & weights.keys():
            ce, dice = self._mask_losses(hidden_TD, batch)
            losses |= {"seg_ce": ce, "seg_dice": dice}
        losses = {name: losses[name] for name in weights if name in losses}
        return losses | {"total": sum((weights[name] * loss for name, loss in losses.items()), predictions.zero())}

    @torch.no_grad()
    def centre_prompt(self, batches: Iterable[PerceptioBatch]) -> None:
        """Set the first bias of a fresh prompt MLP so that the mean state at [SEG] leads to zeros, in place (ours).

        What a language model says at a token that it does not know yet is nearly the same for every sample. A random layer
        passes that on, and the little that tells one object from another drowns in it for hundreds of steps.

        Args:
            batches: their [SEG] tokens are what the mean is over; nothing happens where there is none, or where the MLP has
                learned already.
        """
        if not self.fresh_prompt:
            return
        states = [self._hidden_states(batch.to(self.device))[batch.roles_T == Role.SEG] for batch in batches]
        if sum(map(len, states)):
            first = cast("nn.Linear", self.bridge.prompt[0])
            first.bias.copy_(-(first.weight @ torch.cat(states).to(first.weight.dtype).mean(0)))

    @torch.no_grad()
    def _with_own_codes(self, batch: PerceptioBatch) -> PerceptioBatch:
        """The batch with the likeliest code at each place of the depth spans, all of one pass in which each sees the true codes
        before it (scheduled sampling in two passes, arXiv 1906.07651).
        """
        vocabulary, code_T = self.config.vocabulary, batch.roles_T == Role.DEPTH_CODE
        logits = self.vlm.get_output_embeddings()(self._hidden_states(batch)[code_T.nonzero()[:, 0] - 1])
        codes = logits[:, vocabulary.first_code : vocabulary.first_code + vocabulary.num_codes].argmax(-1)
        return replace(batch, input_ids_T=batch.input_ids_T.masked_scatter(code_T, vocabulary.code_ids(codes)))

    def _hidden_states(self, batch: PerceptioBatch) -> Tensor:
        """Last hidden states (T, D) of the language model."""
        states: Tensor = self.vlm.model(
            input_ids=batch.input_ids_T[None],
            position_ids=batch.positions_T[None],
            pixel_values=batch.pixels_PCHW,
            use_cache=False,
            **packed_places(batch.lengths, device=batch.input_ids_T.device),
        ).last_hidden_state[0]
        return states

    def _sequence_losses(self, predictions: Predictions, *, wanted: Container[str]) -> dict[str, Tensor]:
        about: dict[str, Any] = {"vocabulary": self.config.vocabulary, "depth_tokens": self.config.depth_tokens}
        losses: dict[str, Callable[[Predictions], Tensor]] = {
            "llm": language_loss,
            "marker": marker_loss,
            "token": token_loss,
            "count": partial(count_loss, **about),
            "reconstruction": partial(reconstruction_loss, **about, codebook=self.codebook),
        }
        return {name: loss(predictions) for name, loss in losses.items() if name in wanted}

    def _mask_losses(self, hidden_TD: Tensor, batch: PerceptioBatch) -> tuple[Tensor, Tensor]:
        pixels = batch.sam_pixels_SCHW
        if len(pixels) == 0:  # the bridge touches its parameters even without masks, but it needs an image to do so
            pixels = pixels.new_zeros(1, *pixels.shape[1:])
        logits_Mhw = self.bridge.masks(
            self.bridge.image_features(pixels),
            image_index_M=batch.mask_image_M,
            hidden_MD=hidden_TD[batch.roles_T == Role.SEG],
        )
        # Sa2VA's number of points suits masks of 256 x 256 logits; of smaller ones no more points than logits (ours).
        points = min(12544, logits_Mhw[0].numel()) if len(logits_Mhw) else 1
        losses = mask_losses(logits_Mhw, batch.masks_M, num_points=points)
        return losses.ce, losses.dice


for auto in (AutoModel, AutoModelForImageTextToText):
    auto.register(PerceptioConfig, PerceptioForConditionalGeneration, exist_ok=True)
