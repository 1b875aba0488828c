"""The optimizers' parameter groups at one step, by the names that a probe knows the parameters by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_probes.functional.wide import on_host


@dataclass(frozen=True)
class OptimizerGroup:
    """One parameter group, read at the moment of the measurement.

    Attributes:
        optimizer: Class of the optimizer: its name alone ("SGD") for torch's own, with its module for any other.
        options: The group's options (`lr`, `momentum`, `betas`, ...) as schedulers have left them.
        state: The optimizer's state of each parameter in the group, by name; empty before the first step.
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
        >>> module = nn.Linear(2, 1)
        >>> [group] = optimizer_groups([torch.optim.SGD(module.parameters(), lr=0.1)], module)
        >>> group.optimizer, group.options["lr"], sorted(group.state)
        ('SGD', 0.1, ['bias', 'weight'])
    """
    names = {id(parameter): name for name, parameter in module.named_parameters() if parameter.requires_grad}
    groups = []
    for wrapped in optimizers:
        is_wrapper = "LightningOptimizer" in (base.__name__ for base in type(wrapped).__mro__)
        optimizer: Any = wrapped.optimizer if is_wrapper else wrapped  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            state = {names[id(p)]: optimizer.state.get(p, {}) for p in group["params"] if id(p) in names}
            groups.append(OptimizerGroup(_name(type(optimizer)), options, state))
    return groups


def with_steps_read(groups: Sequence[OptimizerGroup]) -> list[OptimizerGroup]:
    """The groups with the steps taken as plain numbers, by one reading of the device that holds them if fused.

    Example:
        >>> [group] = with_steps_read([OptimizerGroup("Adam", {}, {"weight": {"step": torch.tensor(3.0)}})])
        >>> group.state
        {'weight': {'step': 3.0}}
    """
    steps = [torch.as_tensor(state["step"]) for group in groups for state in group.state.values() if "step" in state]
    read = iter(on_host(torch.stack([step.to(steps[0].device) for step in steps])).tolist() if steps else [])

    def plain(state: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**state, "step": next(read)} if "step" in state else state

    return [replace(group, state={name: plain(state) for name, state in group.state.items()}) for group in groups]


def _name(kind: type) -> str:
    return kind.__name__ if kind.__module__.startswith("torch.optim.") else f"{kind.__module__}.{kind.__name__}"
