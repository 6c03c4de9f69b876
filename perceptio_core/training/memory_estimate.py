"""How much memory a training step will take, said before the run: a sum over what is held at its peak.

The peak comes about where the forward pass ends and the backward pass begins: weights and optimizer state, what autograd
has saved of every layer, and the largest short-lived tensors. What a layer saves is counted operation by operation (as
Korthikanti et al., arXiv 2205.05198, section 4, count a transformer), here for the operations of `transformers`, `peft`
and `sam2` that the model really runs:

- a frozen linear layer saves nothing but its weight; a LoRA layer saves its input and the r numbers between its matrices;
- under bf16 autocast the input of every LoRA layer is a copy of its own, and so is every weight that is not bf16 itself;
- RMS norms compute in float32 and save what they normalise; attention saves query, key and value of all heads, its result,
  and a float32 a head; the MLP saves both factors of its product and the gate before the activation;
- `peft` writes the trained rows into a copy of the embedding at every call, and the output head needs that copy again.

With gradient checkpointing (Chen et al., arXiv 1604.06174) the input of each layer is kept, and everything of one layer at
a time. Not counted: the allocator's fragments, the libraries' own work space, batches that wait.

Sizes in comments: T tokens of the packed row, D hidden size, F of the MLP, r rank of LoRA, V vocabulary, P supervised tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import nn

from perceptio_core.grammar import Role
from perceptio_core.model.batch import PerceptioBatch
from perceptio_core.model.modeling import PerceptioForConditionalGeneration
from perceptio_core.training.sharding import layers_of

FLOAT = 4  # bytes of float32


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What the memory of one micro-batch depends on.

    Attributes:
        tokens: T, of all its samples.
        supervised: P, tokens that are predicted.
        code_tokens: those of the P that are a depth code or close the span.
        tiles: images for the vision tower.
        sam_images: images for SAM2.
        masks: [SEG] tokens.
    """

    tokens: int
    supervised: int
    code_tokens: int
    tiles: int
    sam_images: int
    masks: int

    @classmethod
    def of(cls, batch: PerceptioBatch) -> Self:
        """The shape of a micro-batch."""
        supervised_T = (batch.roles_T != Role.PROMPT) & (batch.positions_T > 0)
        code_T = (batch.roles_T == Role.DEPTH_CODE) | (batch.roles_T == Role.DEPTH_END)
        return cls(
            tokens=len(batch.input_ids_T),
            supervised=int(supervised_T.sum()),
            code_tokens=int(code_T.sum()),
            tiles=len(batch.pixels_PCHW),
            sam_images=len(batch.sam_pixels_SCHW),
            masks=len(batch.masks_M),
        )

    @classmethod
    def largest(cls, batches: Iterable[PerceptioBatch]) -> Self:
        """The largest of each number over some micro-batches, at least one."""
        shapes = [cls.of(batch) for batch in batches]
        return cls(**{field.name: max(getattr(shape, field.name) for shape in shapes) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Computation:
    """How the numbers are computed.

    Attributes:
        bf16: bf16 autocast, else float32 throughout.
        cpu: on a CPU, where attention computes in float32 and dropout keeps floats, not bytes (`packed_attention`).
        checkpointing: gradient checkpointing of the language model and the vision tower.
        accumulation: micro-batches per step and rank.
        ranks: processes that train together; with more than one, gradients exist a second time in the exchange's buckets,
            unless sharded.
        sharded: each rank keeps its part of weights, gradients and optimizer state (`sharding.py`).
    """

    bf16: bool
    cpu: bool
    checkpointing: bool
    accumulation: int = 1
    ranks: int = 1
    sharded: bool = False


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What one process holds.

    Attributes:
        parts: bytes by part.
        apart: bytes of the parts that are not held together with the largest others.
        per_token: bytes that one more token of text takes, without and with gradient checkpointing.
    """

    parts: Mapping[str, int]
    apart: int
    per_token: tuple[int, int]

    @property
    def peak_gib(self) -> float:
        """The most that is held at a time, in GiB."""
        return (sum(self.parts.values()) - self.apart) / 2**30

    def table(self) -> str:
        """One line a part, the peak, and what longer sequences take, in GiB."""
        lines = [f"{size / 2**30:9.2f}  {name}" for name, size in self.parts.items()]
        plain, checkpointed = (1000 * size / 2**30 for size in self.per_token)
        lines += [
            f"{self.peak_gib:9.2f}  peak" + (", gradients and activations at different times" if self.apart else ""),
            f"1000 more tokens of text: {plain:.2f}, with gradient checkpointing {checkpointed:.2f}",
        ]
        return "\n".join(lines)


def estimate_memory(model: PerceptioForConditionalGeneration, *, shape: StepShape, computation: Computation) -> MemoryEstimate:
    """Memory of a training step.

    Args:
        model: with its adapters, as it will train; its weights are not read, so it may lie on the meta device.
        shape: of the largest micro-batch.
        computation: how it is run.
    """
    state = state_bytes(model, ranks=computation.ranks, sharded=computation.sharded)
    passing = activation_bytes(model, shape=shape, computation=computation) | {
        "short-lived tensors": _short_lived_bytes(model, shape=shape, computation=computation)
    }
    longer = replace(shape, tokens=shape.tokens + 1)
    plain, checkpointed = (
        _language_model_bytes(model, shape=longer, computation=way) - _language_model_bytes(model, shape=shape, computation=way)
        for way in (replace(computation, checkpointing=False), replace(computation, checkpointing=True))
    )
    return MemoryEstimate(
        parts=state | passing,
        # The gradients of a first micro-batch come as its activations go; those of a second come on top of them.
        apart=min(state["gradients"], sum(passing.values())) if computation.accumulation == computation.ranks == 1 else 0,
        per_token=(plain, checkpointed),
    )


def state_bytes(model: nn.Module, *, ranks: int, sharded: bool = False) -> dict[str, int]:
    """Bytes of weights, gradients and AdamW's two moments, in the precision that the parameters really have.

    AdamW keeps a float32 step count a parameter besides (`torch.optim.AdamW`, fused). Sharded, a rank keeps a part of each; of
    what lies outside of the layers the whole exists beside it during a step, and of the layers that of two: while one
    computes, the next is gathered. Their gradients exist whole twice, since they are copied to be divided.
    """
    frozen, trained = _weight_bytes(model)
    share = ranks if sharded else 1
    count = sum(parameter.requires_grad for parameter in model.parameters())
    state = {
        "frozen weights": frozen // share + _bytes(model.buffers()),
        "trained weights": trained // share,
        "gradients": trained // share * (2 if ranks > 1 and not sharded else 1),
        "optimizer": 2 * trained // share + FLOAT * count,
    }
    if sharded:
        layers = [_weight_bytes(layer) for layer in layers_of(model)]
        largest_frozen, largest_trained = max(layers, key=sum, default=(0, 0))
        outside_frozen, outside_trained = frozen - sum(one for one, _ in layers), trained - sum(one for _, one in layers)
        state["gathered for a moment"] = outside_frozen + 3 * outside_trained + 2 * largest_frozen + 4 * largest_trained
    return state


def _weight_bytes(module: nn.Module) -> tuple[int, int]:
    """Bytes of the frozen and of the trained parameters."""
    parameters = list(module.parameters())
    trained = _bytes(parameter for parameter in parameters if parameter.requires_grad)
    return _bytes(parameters) - trained, trained


def activation_bytes(model: PerceptioForConditionalGeneration, *, shape: StepShape, computation: Computation) -> dict[str, int]:
    """Bytes that autograd holds between forward and backward pass, by part of the model."""
    parts = {
        "activations: language model": _language_model_bytes(model, shape=shape, computation=computation),
        "activations: output head and logits": _head_bytes(model, shape=shape, computation=computation),
        "activations: vision tower and projector": _vision_bytes(model, shape=shape, computation=computation),
    }
    if model.segments:
        parts["activations: mask decoder"] = _mask_bytes(model, shape=shape, computation=computation)
    if model.config.loss_weights["reconstruction"] > 0:
        parts["activations: depth decoder"] = _depth_bytes(model, shape=shape)
    return parts


def _language_model_bytes(model: PerceptioForConditionalGeneration, *, shape: StepShape, computation: Computation) -> int:
    config = model.vlm.config.text_config
    layers = model.vlm.model.language_model.layers
    layer = layers[0]
    lora = layer.self_attn.q_proj
    (rank,), (dropout,) = lora.r.values(), lora.lora_dropout.values()
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * layer.self_attn.head_dim  # of all query heads
    key_heads = config.num_key_value_heads * layer.self_attn.head_dim
    size = 2 if computation.bf16 else FLOAT
    kept = FLOAT if computation.cpu else size  # attention's own precision
    residual = _parameter_size(model.vlm.get_input_embeddings())

    # Inputs of q, k, v, o, gate, up, down: a copy each under autocast or dropout, else one for all that share it.
    dropped = isinstance(dropout, nn.Dropout)
    apart = 5 * width + heads + inner
    inputs = size * (apart if computation.bf16 or dropped else 2 * width + heads + inner)
    masked = apart * (FLOAT if computation.cpu else 1) if dropped else 0
    norms = 2 * FLOAT * (width + 1)
    if hasattr(layer.self_attn, "q_norm"):  # Qwen3
        norms += FLOAT * (heads + key_heads)
    attention = kept * 4 * heads + FLOAT * config.num_attention_heads  # q, k, v, result; k and v repeated to all heads
    a_token = inputs + masked + norms + attention + size * (7 * rank + 3 * inner)
    a_layer = shape.tokens * a_token + (_cast_bytes(layer) if computation.bf16 else 0)
    last_norm = shape.tokens * FLOAT * width
    if computation.checkpointing:
        return len(layers) * shape.tokens * residual * width + a_layer + last_norm
    return len(layers) * a_layer + last_norm


def _head_bytes(model: PerceptioForConditionalGeneration, *, shape: StepShape, computation: Computation) -> int:
    """Of the P x V logits, in float32: what the cross-entropies save of all rows and the count loss of the codes'; and the
    head's merged weight.
    """
    rows, width = model.vlm.get_input_embeddings().weight.shape
    size = 2 if computation.bf16 else FLOAT
    weight = size * rows * width
    logits = FLOAT * rows * (shape.supervised + shape.code_tokens)
    return weight + logits + size * shape.supervised * width


def _vision_bytes(model: PerceptioForConditionalGeneration, *, shape: StepShape, computation: Computation) -> int:
    vision, config = model.vlm.config.vision_config, model.vlm.config
    size = 2 if computation.bf16 else FLOAT
    kept = FLOAT if computation.cpu else size
    merged = round(1 / config.downsample_ratio) ** 2  # patches in one image token
    # Projector: norm (in float32), linear, activation, linear.
    a_token = (FLOAT + size) * merged * vision.hidden_size + 2 * size * config.text_config.hidden_size
    total = shape.tiles * config.image_seq_length * a_token
    tower = model.vlm.model.vision_tower
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        return total
    width, inner = vision.hidden_size, vision.intermediate_size
    patches = shape.tiles * (config.image_seq_length * merged + 1)
    # Norm inputs; inputs of q, k, v (a copy each under autocast), o and fc1; the two scaled results; fc2 and its activation.
    inputs = size * (5 * width if computation.bf16 else 3 * width) + size * 2 * width + 2 * size * inner
    attention = kept * 4 * width + FLOAT * vision.num_attention_heads
    a_layer = patches * (2 * FLOAT * width + inputs + attention)
    layers = tower.encoder.layer
    if computation.bf16:
        a_layer += _cast_bytes(layers[0])
        total += size * shape.tiles * vision.num_channels * vision.image_size[0] * vision.image_size[1]  # the pixels' copy
    if computation.checkpointing:
        return total + len(layers) * patches * FLOAT * width + a_layer
    return total + len(layers) * a_layer


def _mask_bytes(model: PerceptioForConditionalGeneration, *, shape: StepShape, computation: Computation) -> int:
    """SAM2's two-way transformer and upscaling of each mask, and the encoder's maps that stay for them (`sam2`).

    In units of a map of the embedding (C channels at stride 16); tokens beside it are too few to count.
    """
    sam = model.bridge.sam
    size = 2 if computation.bf16 else FLOAT
    unit = sam.hidden_dim * (sam.image_size // 16) ** 2
    # Each of 2 layers: inputs of k, v and q (3), k and v and q (1.5), attention's result and its copy (1); the norm's input.
    # Then k, v and their inputs (3 without the shared one). Upscaling: its input, norm and two activations.
    if computation.bf16:
        a_mask = 2 * (5.5 * size + FLOAT) + 3 * size + size + (3 * FLOAT + 6 * size)
    else:
        a_mask = FLOAT * (2 * 6.5 + 3 + 9)
    an_image = size * (16 + 4 + 1)  # strides 4, 8 and 16
    # A batch without masks decodes one that is dropped.
    return round(unit * (max(1, shape.masks) * a_mask + max(1, shape.sam_images) * an_image))


def _depth_bytes(model: PerceptioForConditionalGeneration, *, shape: StepShape) -> int:
    """The VQ-VAE's decoder on the soft merge, float32: inputs of its layers, each activation once."""
    codebook = model.codebook
    spans = shape.code_tokens // (codebook.grid**2 + 1)
    widths = codebook.config["widths"]
    residual = 2 * 3 * widths[-1] * codebook.grid**2  # two blocks of three convolutions
    up = sum(width * (codebook.resolution >> place + 1) ** 2 for place, width in enumerate(widths))
    return spans * FLOAT * (codebook.config["dim"] * codebook.grid**2 + residual + up + codebook.resolution**2)


def _short_lived_bytes(model: PerceptioForConditionalGeneration, *, shape: StepShape, computation: Computation) -> int:
    """The largest group of tensors that live for a moment while all activations are held."""
    rows, width = model.vlm.get_input_embeddings().weight.shape
    size = 2 if computation.bf16 else FLOAT
    # Backward through the head: gradients of the log-softmax, of the float32 logits, of what the head wrote, of its weight.
    head = shape.supervised * rows * (2 * FLOAT + size) + size * rows * width
    # In a layer, the input of the widest LoRA: as it comes, in float32, and after dropout.
    layer = shape.tokens * model.vlm.config.text_config.intermediate_size * (size + 2 * FLOAT)
    if not model.segments:
        return max(head, layer)
    # SAM2's first stage (Hiera, stride 4): a block's input and norm, its MLP before and after the activation (ratio 4);
    # the float32 logits are still held while it runs.
    channels = model.bridge.sam.image_encoder.trunk.blocks[0].dim
    places = max(1, shape.sam_images) * (model.bridge.sam.image_size // 4) ** 2
    encoder = places * channels * (2 * FLOAT + 2 * 4 * size) + shape.supervised * rows * FLOAT
    return max(head, layer, encoder)


def _cast_bytes(module: nn.Module) -> int:
    """Bytes of the bf16 copies that autocast makes of a module's matrices, where they are not bf16 already."""
    matrices = (parameter for parameter in module.parameters() if parameter.ndim >= 2)
    return sum(2 * matrix.numel() for matrix in matrices if matrix.dtype != torch.bfloat16)


def _parameter_size(module: nn.Module) -> int:
    return int(next(module.parameters()).element_size())


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
