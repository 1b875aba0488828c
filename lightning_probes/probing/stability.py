"""How much curvature the optimizers of a run can take at this step, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.functional.stability import adam_inverse_threshold, adam_preconditioner, sgd_inverse_threshold
from lightning_probes.probing.optimizers import OptimizerGroup

_ADAM = ("Adam", "AdamW")
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Stability:
    """What turns the Hessian into a stability ratio.

    Attributes:
        inverse_threshold: One over the largest stable curvature of each parameter, shape `(n,)`, zero where no optimizer
            updates it. The top eigenvalue of the Hessian scaled by it is the stability ratio.
        uniform: The one inverse threshold that all parameters share, if they do; for Adam on the preconditioned Hessian.
        inverse_preconditioner: For Adam one over its preconditioner, shape `(n,)`; else None.
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
        None where a group belongs to another optimizer, or to an Adam that has not taken a step.

    Example:
        >>> group = OptimizerGroup("SGD", {"lr": 0.1, "momentum": 0.0}, {"weight": {}})
        >>> stability_of([group], {"weight": torch.zeros(2)}).inverse_threshold
        tensor([0.0500, 0.0500])
    """
    inverse = {name: torch.zeros_like(parameter) for name, parameter in params.items()}
    inverse_preconditioner: dict[str, Tensor] = {}
    eps: dict[str, float] = {}
    numbers = set()
    for group in groups:
        if not known([group]) or group.options.get("maximize"):
            return None
        options = group.options
        for name, state in group.state.items():
            if group.optimizer == "SGD":
                number = sgd_inverse_threshold(
                    float(options["lr"]),
                    options["momentum"],
                    options.get("dampening", 0.0),
                    options.get("nesterov", False),
                )
                inverse[name] = torch.full_like(params[name], number)
                numbers.add(number)
                continue
            if "exp_avg_sq" not in state:
                return None
            (beta1, beta2), lr = map(float, options["betas"]), float(options["lr"])
            second = state["max_exp_avg_sq" if options.get("amsgrad") else "exp_avg_sq"]
            preconditioner = adam_preconditioner(second, state["step"], beta1, beta2, options["eps"])
            inverse[name] = adam_inverse_threshold(lr, beta1, preconditioner)
            inverse_preconditioner[name] = 1 / preconditioner
            eps[name] = float(adam_preconditioner(torch.zeros(()), state["step"], beta1, beta2, options["eps"]))
            numbers.add(float(adam_inverse_threshold(lr, beta1, torch.ones(()))))
    for name, asleep in _asleep(inverse_preconditioner, eps).items():
        inverse[name].masked_fill_(asleep, 0.0)
        inverse_preconditioner[name].masked_fill_(asleep, 0.0)
    covered = {name for group in groups for name in group.state}
    if not covered:
        return None
    uniform = numbers.pop() if len(numbers) == 1 and covered >= set(params) else None
    whole = inverse_preconditioner.keys() >= set(params)
    scale = to_vector({name: inverse_preconditioner[name] for name in params}) if whole else None
    return Stability(to_vector({name: inverse[name] for name in params}), uniform, scale)


def _asleep(inverse_preconditioner: Mapping[str, Tensor], eps: Mapping[str, float]) -> dict[str, Tensor]:
    """Coordinates whose gradients in training were zero up to rounding, so that they play no part in its dynamics.

    A bias in front of a BatchNorm is one: it has no gradient in training, and a preconditioner of eps or rounding
    errors, but some curvature in eval mode, in which curvature is measured.
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
    return all(group.optimizer in ("SGD", *_ADAM) for group in groups)
