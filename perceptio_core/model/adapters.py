"""What co-training trains: LoRA on the language model, the added token rows in full, and the parts around it.

Trained (as Sa2VA): LoRA on every linear layer of the language model, the projector, the prompt MLP and SAM2's mask
decoder, and of the embeddings the *added* rows only (ours: Sa2VA trains all rows). Frozen: the old rows, the vision
tower (a parameter), SAM2's encoders, the depth codebook.
"""

from __future__ import annotations

from typing import cast

import torch
from peft import LoraConfig, LoraModel
from torch import nn

from perceptio_core.model.modeling import PerceptioForConditionalGeneration

ADAPTER = "perceptio"
LORA_TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def add_adapters(
    model: PerceptioForConditionalGeneration, *, rank: int, alpha: int, dropout: float, train_vision_tower: bool
) -> dict[str, dict[str, nn.Parameter]]:
    """Put adapters into `model` in place and freeze everything that does not train; what trains becomes float32.

    Args:
        model: fresh from `assemble` or `from_pretrained`, without adapters.
        rank: r of LoRA, >= 1.
        alpha: of LoRA; the update is scaled by alpha / rank.
        dropout: on the inputs of the LoRA matrices, in [0, 1).
        train_vision_tower: whether the vision tower learns too.

    Returns:
        The trainable parameters by name in the model, in groups: ``"adapters"`` (LoRA), ``"added_rows"``,
        ``"projector"``, ``"vision_tower"``, ``"prompt"`` (its MLP) and ``"mask_decoder"``; a group without parameters is
        left out.

    Raises:
        ValueError: the model has adapters already.
    """
    if model.adapters:
        raise ValueError("the model has adapters already; merge them first")
    model.requires_grad_(False)
    added = model.config.vocabulary.ids
    tied = model.vlm.get_output_embeddings().weight is model.vlm.get_input_embeddings().weight
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        # peft lets a tied head follow the input embedding; an untied one needs rows of its own.
        trainable_token_indices={"embed_tokens": added} if tied else {"embed_tokens": added, "lm_head": added},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same adapters on every rank and in every attempt of a run
        model.adapters.append(LoraModel(model.vlm, config, adapter_name=ADAPTER))
    model.vlm.model.multi_modal_projector.requires_grad_(True)
    model.vlm.model.vision_tower.requires_grad_(train_vision_tower)
    if model.segments:
        model.bridge.prompt.requires_grad_(True)
        model.bridge.train_decoder()
    for parameter in model.parameters():
        if parameter.requires_grad:  # published checkpoints are bf16, in which a small step of the optimizer rounds to none
            parameter.data = parameter.data.float()
    return trainable_groups(model)


def trainable_groups(model: PerceptioForConditionalGeneration) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of `model` that train, as `add_adapters` returns them."""
    groups: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if name.startswith("bridge.prompt."):
                group = "prompt"
            elif name.startswith("bridge."):
                group = "mask_decoder"
            elif ".vision_tower." in name:
                group = "vision_tower"
            elif ".multi_modal_projector." in name:
                group = "projector"
            elif "trainable_tokens" in name:
                group = "added_rows"
            else:
                group = "adapters"
            groups.setdefault(group, {})[name] = parameter
    return groups


def merge_adapters(model: PerceptioForConditionalGeneration) -> None:
    """Fold the adapters into the weights, in place: afterwards the model has the parts, names and types of a fresh one.

    What trained in float32 inside a bf16 InternVL is rounded to bf16, so that the model computes without autocast what its
    checkpoint will.

    Raises:
        ValueError: the model has no adapters, or a merged weight is not finite.
    """
    if not model.adapters:
        raise ValueError("the model has no adapters to merge")
    tuner = model.adapters.pop()
    model.vlm = cast("nn.Module", tuner.merge_and_unload(safe_merge=True))
    for parameter in model.vlm.parameters():  # not `vlm.to`: that would round the rotary frequencies too
        parameter.data = parameter.data.to(model.vlm.get_input_embeddings().weight.dtype)
