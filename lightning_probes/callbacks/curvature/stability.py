"""The largest stable curvature of a run's optimizers at this step, for each parameter."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from lightning_probes.functional.curvature.stability_limits import (
    adam_inverse_threshold,
    adam_preconditioner,
    sgd_inverse_threshold,
)
from lightning_probes.functional.inner_product import norm
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.functional.wide import on_host
from lightning_probes.probing.run.optimizers import OptimizerGroup

_ADAM = ("Adam", "AdamW")
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Stability:
    """The scales that turn the Hessian into a stability ratio.

    Attributes:
        inverse_threshold: One over the largest stable curvature of each parameter, shape `(n,)`; zero for parameters
            that no optimizer updates. The top eigenvalue of the Hessian scaled by it is the stability ratio.
        uniform: The inverse threshold, if it is the same for all parameters; for Adam that of the preconditioned
            Hessian.
        inverse_preconditioner: For Adam one over its preconditioner, shape `(n,)`; otherwise None.
    """

    inverse_threshold: Tensor
    uniform: float | None
    inverse_preconditioner: Tensor | None


def stability_of(groups: Sequence[OptimizerGroup], params: Mapping[str, Tensor]) -> Stability | None:
    """Read the thresholds of SGD, Adam and AdamW from their parameter groups and state.

    Args:
        groups: The optimizers' groups at this step.
        params: The trainable parameters.

    Returns:
        None if there is no group, or if a group belongs to another optimizer or to an Adam in its first
        `1 / (1 - beta1)` steps.

    Example:
        >>> group = OptimizerGroup("SGD", {"lr": 0.1, "momentum": 0.0}, {"weight": {}})
        >>> stability_of([group], {"weight": torch.zeros(2)}).inverse_threshold
        tensor([0.0500, 0.0500])
    """
    groups = [group for group in groups if group.state]
    if not groups or not known(groups) or any(group.options.get("maximize") for group in groups):
        return None
    groups = _with_steps_read(groups)
    inverse = {name: torch.zeros_like(parameter) for name, parameter in params.items()}
    inverse_preconditioner: dict[str, Tensor] = {}
    eps: dict[str, float] = {}
    numbers = set()
    for group in groups:
        options, lr = group.options, float(group.options["lr"])
        if group.optimizer == "SGD":
            momentum, dampening = float(options["momentum"]), float(options.get("dampening", 0.0))
            number = sgd_inverse_threshold(lr, momentum, dampening, options.get("nesterov", False))
            inverse.update({name: torch.full_like(params[name], number) for name in group.state})
            numbers.add(number)
            continue
        beta1, beta2 = map(float, options["betas"])
        numbers.add(float(adam_inverse_threshold(lr, beta1, torch.ones(()))))
        for name, state in group.state.items():
            if "exp_avg_sq" not in state or _young(state["step"], beta1):
                continue
            second = state["max_exp_avg_sq" if options.get("amsgrad") else "exp_avg_sq"]
            second = second.to(torch.promote_types(second.dtype, torch.float32))
            preconditioner = adam_preconditioner(second, state["step"], beta1, beta2, options["eps"])
            inverse[name] = adam_inverse_threshold(lr, beta1, preconditioner)
            inverse_preconditioner[name] = 1 / preconditioner
            eps[name] = float(adam_preconditioner(on_host(0.0), state["step"], beta1, beta2, options["eps"]))
    adam = {name for group in groups if group.optimizer in _ADAM for name in group.state}
    if adam and not inverse_preconditioner:
        return None
    for name, asleep in _asleep(inverse_preconditioner, eps).items():
        inverse[name].masked_fill_(asleep, 0.0)
        inverse_preconditioner[name].masked_fill_(asleep, 0.0)
    # A parameter that never had a gradient has no state and no part in the dynamics. That of a young one is unknown.
    scale = {name: inverse_preconditioner.get(name, torch.zeros_like(p)) for name, p in params.items()}
    covered = {name for group in groups for name in group.state}
    return Stability(
        inverse_threshold=to_vector({name: inverse[name] for name in params}),
        uniform=numbers.pop() if len(numbers) == 1 and covered >= set(params) else None,
        inverse_preconditioner=to_vector(scale) if adam >= set(params) else None,
    )


def clipping_factor(limit: float | None, gradient: Tensor) -> float:
    """The factor by which clipping by norm multiplies a gradient, and so the learning rate and the stability ratio.

    For Adam it is the same: its preconditioner is computed from clipped gradients, the Hessian from unclipped ones.

    Args:
        limit: The norm to which training clips gradients, see `ModelView.gradient_clip`.
        gradient: Gradient of the loss, shape `(n,)`. Gradients of mini-batches are longer, so their factor is smaller.

    Returns:
        1.0 if nothing is clipped.

    Example:
        >>> clipping_factor(0.5, torch.tensor([3.0, 4.0]))
        0.1
    """
    if limit is None or limit <= 0:
        return 1.0
    return float(on_host((limit / norm(gradient)).clamp(max=1.0)))


def _with_steps_read(groups: Sequence[OptimizerGroup]) -> list[OptimizerGroup]:
    """The groups with their step counts as plain numbers, with one device-to-host copy for fused optimizers.

    Example:
        >>> [group] = _with_steps_read([OptimizerGroup("Adam", {}, {"weight": {"step": torch.tensor(3.0)}})])
        >>> group.state["weight"]["step"]
        3.0
    """
    steps = [torch.as_tensor(state["step"]) for group in groups for state in group.state.values() if "step" in state]
    read = iter(on_host(torch.stack([step.to(steps[0].device) for step in steps])).tolist() if steps else [])

    def plain(state: Mapping[str, Any]) -> Mapping[str, Any]:
        # Not one dict, which would copy all that the optimizer keeps of the parameter.
        return ChainMap({"step": next(read)}, cast(dict[str, Any], state)) if "step" in state else state

    return [replace(group, state={name: plain(state) for name, state in group.state.items()}) for group in groups]


def _young(step: float | Tensor, beta1: float) -> bool:
    """Whether Adam's preconditioner still changes faster than its momentum, so that it can't be taken as constant.

    It is then a mean over few gradients: if they happened to be near zero for a parameter, so is the preconditioner,
    until the next step.
    """
    return float(step) < round(1 / (1 - beta1))


def _asleep(inverse_preconditioner: Mapping[str, Tensor], eps: Mapping[str, float]) -> dict[str, Tensor]:
    """Coordinates whose gradients in training were zero up to rounding, so that they have no part in its dynamics.

    A bias before a BatchNorm is an example. It has no gradient in training, and its preconditioner is eps or rounding
    errors. But it has curvature in eval mode, in which curvature is measured.
    """
    if not inverse_preconditioner:
        return {}
    largest = 1 / torch.stack([tensor.min() for tensor in inverse_preconditioner.values()]).min()
    return {
        name: 1 / tensor <= (_ROUNDING * largest).clamp(min=2 * eps[name])
        for name, tensor in inverse_preconditioner.items()
    }


def known(groups: Sequence[OptimizerGroup]) -> bool:
    """Whether the stability threshold of every group's optimizer is known."""
    return all(group.optimizer in ("SGD", *_ADAM) for group in groups if group.state)
