"""The optimizers' parameter groups at one step, by the names that a probe knows the parameters by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_probes.probing.isolation.copies import Copies, copied
from lightning_probes.probing.origin import names_in


@dataclass(frozen=True)
class OptimizerGroup:
    """One parameter group, read at the moment of the measurement. Nothing done to what it gives reaches training.

    Attributes:
        optimizer: Class of the optimizer: its name alone ("SGD") for torch's own, with its module for any other.
        options: The group's options (`lr`, `momentum`, `betas`, ...) as schedulers have left them.
        state: The optimizer's state of each parameter in the group, by name; empty before the first step. Each tensor
            is copied when it is asked for.
    """

    optimizer: str
    options: Mapping[str, Any]
    state: Mapping[str, Mapping[str, Any]]


def optimizer_groups(optimizers: Iterable[Optimizer], module: nn.Module) -> list[OptimizerGroup]:
    """Read the parameter groups of a run's optimizers.

    Args:
        optimizers: The optimizers; Lightning's wrappers are looked through.
        module: The module whose parameters they update.

    Returns:
        One entry a group, with the trainable parameters that belong to `module`.

    Example:
        >>> import torch
        >>> module = nn.Linear(2, 1)
        >>> [group] = optimizer_groups([torch.optim.SGD(module.parameters(), lr=0.1)], module)
        >>> group.optimizer, group.options["lr"], sorted(group.state)
        ('SGD', 0.1, ['bias', 'weight'])
    """
    names = {id(parameter): name for name, parameter in module.named_parameters() if parameter.requires_grad}
    groups = []
    for wrapped in optimizers:
        is_wrapper = "LightningOptimizer" in names_in(type(wrapped))
        optimizer: Any = wrapped.optimizer if is_wrapper else wrapped  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            options = {key: copied(value) for key, value in group.items() if key != "params"}
            state = {names[id(p)]: Copies(optimizer.state.get(p, {})) for p in group["params"] if id(p) in names}
            groups.append(OptimizerGroup(_name(type(optimizer)), options, state))
    return groups


def _name(kind: type) -> str:
    return kind.__name__ if kind.__module__.startswith("torch.optim.") else f"{kind.__module__}.{kind.__name__}"
