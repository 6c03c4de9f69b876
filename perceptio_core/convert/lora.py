"""LoRA adapters that a checkpoint still keeps apart, folded into the weights: W + (alpha / r) B A.

Source: LoRA (arXiv 2106.09685), in the key layout of `peft`: ``X.base_layer.weight`` (``X.weight`` in old releases),
``X.lora_A.default.weight`` (r, in), ``X.lora_B.default.weight`` (out, r); layers that trained in full as
``X.modules_to_save.default.weight``, beside an ``X.original_module.weight`` that they replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from perceptio_core.weights import refuse

_WRAPPER = "base_model.model."  # what peft puts before the names of the model that it wraps


def merge_lora(weights: Mapping[str, Tensor], *, prefix: str, rank: int, source: Path) -> dict[str, Tensor]:
    """Fold the adapters below `prefix` in; the other keys, and a model without adapters, stay as they are.

    Args:
        weights: of the whole checkpoint.
        prefix: of the model that has the adapters, as in ``"language_model."``.
        rank: r by the configuration (`use_llm_lora`), 0 for no adapters; alpha is 2 r, as InternVL and Sa2VA set it.
        source: where the weights come from, for messages.

    Returns:
        The merged weights, computed in float32, in the type that they had before.

    Raises:
        ValueError: an adapter is incomplete or absent, or of another rank or shape than it should be, or a layer is kept apart
            from one that should replace it and does not; lists the keys.
    """
    plain: dict[str, Tensor] = {}
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    doubles: list[str] = []
    wrapped: set[str] = set()  # their adapters must be there
    replaced: set[str] = set()  # and what replaces these
    for key, value in weights.items():
        if not key.startswith(prefix):
            plain[key] = value
            continue
        name = key.replace(f"{prefix}{_WRAPPER}", prefix, 1)
        if ".original_module." in name:
            replaced.add(name.replace(".original_module.", "."))
            continue
        if name.endswith(".base_layer.weight"):
            wrapped.add(name.replace(".base_layer.", "."))
        if name.endswith(".lora_A.default.weight"):
            downs[name.removesuffix(".lora_A.default.weight") + ".weight"] = value
        elif name.endswith(".lora_B.default.weight"):
            ups[name.removesuffix(".lora_B.default.weight") + ".weight"] = value
        else:
            name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
            doubles += [key] if name in plain else []
            plain[name] = value
    faults = {
        "that mean the same as another": doubles,
        "with half an adapter": sorted(downs.keys() ^ ups.keys()),
        "of layers whose adapter is missing": sorted(wrapped - (downs.keys() | ups.keys())),
        "of original modules without one that replaces them": sorted(replaced - plain.keys()),
        "of adapters without a weight below them": sorted((downs.keys() | ups.keys()) - plain.keys()),
        f"of adapters that are not of rank {rank}, use_llm_lora in config.json": sorted(
            key for key, down_RI in downs.items() if len(down_RI) != rank
        ),
    }
    refuse(faults, source=source)
    for key, down_RI in downs.items():
        weight_OI, up_OR = plain[key], ups[key]
        if up_OR.shape[1:] != (rank,) or weight_OI.shape != (len(up_OR), *down_RI.shape[1:]):
            told = f"{key} {tuple(weight_OI.shape)} with adapters {tuple(up_OR.shape)} and {tuple(down_RI.shape)}"
            refuse({"of another shape": [told]}, source=source)
        plain[key] = (weight_OI.float() + 2.0 * up_OR.float() @ down_RI.float()).to(weight_OI.dtype)
    return plain
