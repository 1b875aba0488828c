"""Layers whose outputs get another mean and spread, folded into weight and bias.

Between two networks the outputs of units have too little variance, which a correction repairs (Jordan et al. 2023,
arXiv:2211.08403).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DEAD = 1e-12  # a variance below this share of the mean square is rounding


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of the outputs of units.

    Attributes:
        mean: Shape `(units,)`.
        std: Shape `(units,)`.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, outputs: Tensor) -> Spread:
        """Those of outputs of shape `(samples, units)`.

        Example:
            >>> Spread.of(torch.tensor([[1.0], [3.0]]))
            Spread(mean=tensor([2.]), std=tensor([1.]))
        """
        variance, mean = torch.var_mean(outputs, 0, correction=0)
        return cls(mean, variance.sqrt())

    def towards(self, other: Spread, alpha: float) -> Spread:
        """The interpolation (1 - alpha) self + alpha other."""
        return Spread(torch.lerp(self.mean, other.mean, alpha), torch.lerp(self.std, other.std, alpha))


def correction(now: Spread, goal: Spread) -> tuple[Tensor, Tensor]:
    """Scale and shift that give outputs another mean and standard deviation.

    A unit whose output is constant can only be shifted.

    Returns:
        Both of shape `(units,)`: `scale * output + shift` has the mean and the standard deviation of the goal.

    Example:
        >>> here, there = Spread(torch.zeros(1), torch.ones(1)), Spread(torch.full((1,), 5.0), torch.full((1,), 2.0))
        >>> correction(here, there)
        (tensor([2.]), tensor([5.]))
    """
    varies = now.std.square() > _DEAD * (now.mean.square() + now.std.square())
    scale = torch.where(varies, goal.std / now.std, 1)
    return scale, goal.mean - scale * now.mean


def folded(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer whose outputs are `scale * output + shift`.

    Args:
        weight: Shape `(units, ...)`, as of linear and convolutional layers.
        bias: Shape `(units,)`.
        scale: Shape `(units,)`.
        shift: Shape `(units,)`.
    """
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift
