"""A curve of low loss between two ends (Garipov et al. 2018, arXiv:1802.10026).

phi(t) = (1 - t)^2 A + 2 t (1 - t) theta + t^2 B, where theta minimises the mean of the loss over t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Gradient: TypeAlias = Callable[[Tensor, int], Tensor]
"""The gradient of the loss at a vector of parameters, on the batch of a number."""


class Bent(NamedTuple):
    """The control point of a curve.

    Attributes:
        theta: Where it ended.
        before: Where it was when half of the steps were done.
    """

    theta: Tensor
    before: Tensor


def bezier(start: Tensor, theta: Tensor, end: Tensor, t: float) -> Tensor:
    """The point of the curve at t; both ends bit for bit.

    Example:
        >>> bezier(torch.zeros(1), torch.ones(1), torch.zeros(1), 0.5)
        tensor([0.5000])
    """
    if t in (0, 1):
        return end if t else start
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * theta + t**2 * end


def bend(
    gradient: Gradient, start: Tensor, end: Tensor, steps: int, lr: float, generator: torch.Generator,
    momentum: float = 0.9,
) -> Bent:  # fmt: skip
    """Minimise the mean loss of the curve over t by SGD with momentum, on one batch a step.

    A step takes the gradients at a random t and at 1 - t, whose pulls along the chord mostly cancel. The learning rate
    falls linearly to 0 in the second half of the steps.

    Args:
        gradient: Of the loss, at a vector, on the batch of a number; called twice a step.
        start: End of the curve at t = 0.
        end: End of the curve at t = 1.
        steps: How many.
        lr: The learning rate.
        generator: Draws t; of the CPU.
        momentum: That of SGD.

    Returns:
        The control point, which starts in the middle between the ends.

    Example:
        >>> half = bend(lambda x, _: 2 * x, torch.ones(1), -torch.ones(1), 20, 0.1, torch.Generator()).theta
        >>> bool(half.abs() < 1)
        True
    """
    theta = torch.lerp(start, end, 0.5)
    velocity, before = torch.zeros_like(theta), theta
    for step in range(steps):
        t = float(torch.rand((), generator=generator, dtype=torch.float64))
        here, mirrored = (gradient(bezier(start, theta, end, at), step) for at in (t, 1 - t))
        slope = t * (1 - t) * (here + mirrored)
        velocity = momentum * velocity + slope
        theta = theta - lr * min(1.0, 2 * (1 - step / steps)) * velocity
        if step + 1 == steps // 2:
            before = theta
    return Bent(theta, before)
