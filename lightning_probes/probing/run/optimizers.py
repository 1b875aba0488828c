"""The optimizers at one step: their parameter groups by name, and which of them is about to step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
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


@dataclass(frozen=True)
class Stepping:
    """The optimizer that is about to take a step.

    Attributes:
        place: Its place among the optimizers of the run.
        count: How many optimizers the run has.
        names: Names of the trainable parameters that it updates.
        scale: The number by which a gradient scaler has multiplied the gradients, shape `()`, if the optimizer itself
            divides by it. None if the gradients have no such factor.
        may_skip: Whether a gradient scaler leaves out the step if a gradient is not finite.
        clips: Whether the run clips the gradients before the step.
    """

    place: int
    count: int
    names: frozenset[str]
    scale: Tensor | None
    may_skip: bool
    clips: bool


def stepping(
    optimizer: Optimizer, optimizers: Sequence[Optimizer], module: nn.Module, scaler: Any, clips: bool
) -> Stepping:
    """Describe the optimizer that is about to take a step.

    Args:
        optimizer: The optimizer, without a wrapper.
        optimizers: All optimizers of the run, with or without Lightning's wrappers.
        module: The module whose parameters they update.
        scaler: The run's gradient scaler for float16, or None.
        clips: Whether the run clips gradients.
    """
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = (name for name, p in module.named_parameters() if p.requires_grad and id(p) in updated)
    place = next((at for at, each in enumerate(optimizers) if getattr(each, "optimizer", each) is optimizer), 0)
    # Lightning leaves it to fused optimizers to unscale.
    unscales = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
    # `get_scale()` waits for the device.
    scale = getattr(scaler, "_scale", None) if unscales else None
    if unscales and scale is None:
        scale = torch.tensor(scaler.get_scale())
    return Stepping(place, len(optimizers), frozenset(names), scale, scaler is not None, clips)


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
