"""AdamW over named parameter groups, each with its own learning rate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Attributes:
        name: shown in the log.
        rate: base learning rate, > 0.
        start: share of the run before they begin to learn, in [0, 1).
        parameters: name in the model -> parameter; only those that train.
    """

    name: str
    rate: float
    start: float = 0.0
    parameters: Mapping[str, nn.Parameter]


def check_groups(*, model: nn.Module, groups: list[ParameterGroup]) -> None:
    """Every trainable parameter belongs to exactly one group, and no frozen one to any.

    Raises:
        ValueError: naming the parameters that are missing, doubled or frozen.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    named = [name for group in groups for name in group.parameters]
    doubled = sorted({name for name in named if named.count(name) > 1}) if len(named) != len(set(named)) else []
    missing, frozen = sorted(trainable - set(named)), sorted(set(named) - trainable)
    for complaint, names in (("in no group", missing), ("in two groups", doubled), ("frozen", frozen)):
        if names:
            raise ValueError(f"{len(names)} parameters are {complaint}: {', '.join(names[:4])}")


def build_optimizer(*, groups: list[ParameterGroup], weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW, beta1 0.9 as Sa2VA; vectors (norms, biases) do not decay (ours).

    Each torch group keeps its base rate as `base_rate` and its start, so that `set_rates` needs no other state.
    """
    torch_groups = []
    for group in groups:
        matrices = [parameter for parameter in group.parameters.values() if parameter.ndim >= 2]
        vectors = [parameter for parameter in group.parameters.values() if parameter.ndim < 2]
        for parameters, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if parameters:
                rates = {"lr": group.rate, "base_rate": group.rate, "start": group.start}
                torch_groups.append({"params": parameters, "weight_decay": decay, **rates})
    return torch.optim.AdamW(torch_groups, betas=(0.9, beta2), fused=True)


def set_rates(*, optimizer: torch.optim.Optimizer, factor: Callable[..., float]) -> None:
    """Set every group's learning rate to its base rate times `factor(start=...)`, given the group's start."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor(start=group["start"])
