"""The parameter groups of the optimizers at one step, with parameters by name."""

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
    """One parameter group at the moment of the measurement. Changes to its values do not reach training.

    Attributes:
        optimizer: The class of the optimizer: only its name ("SGD") if it is from torch, otherwise with its module.
        options: The group's present options (`lr`, `momentum`, `betas`, ...), as changed by schedulers.
        state: The optimizer's state of each parameter in the group, by name; empty before the first step. Each tensor
            is copied at access.
    """

    optimizer: str
    options: Mapping[str, Any]
    state: Mapping[str, Mapping[str, Any]]


def optimizer_groups(optimizers: Iterable[Optimizer], module: nn.Module) -> list[OptimizerGroup]:
    """Read the parameter groups of a run's optimizers.

    Args:
        optimizers: The optimizers, with or without Lightning's wrappers.
        module: The module whose parameters they update.

    Returns:
        One entry per group, with the trainable parameters that belong to `module`.

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
