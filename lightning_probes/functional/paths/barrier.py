"""How far the loss rises between two points in parameter space: three baselines, told apart by name.

Over the chord (Entezari et al. 2022, arXiv:2110.06296), over the mean of the ends (Frankle et al. 2020,
arXiv:1912.05671), and above the worse end. At equal ends the three are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_probes.functional.paths.interpolation import loss_curve
from lightning_probes.functional.wide import on_host


class Barrier(NamedTuple):
    """The highest point of a curve over a baseline between its ends.

    Attributes:
        value: Height over the baseline, in the unit of the curve; nan if a point is not finite.
        at: Index of the highest point; of the first that is not finite if there is one.
        share: The baseline at that point is (1 - share) times the first end plus share times the last.
    """

    value: float
    at: int
    share: float

    def paired(self, values: Tensor) -> Tensor:
        """The height by micro-batch, whose spread is that of the value.

        Args:
            values: Curves of the micro-batches, shape `(points, micro-batches)`.
        """
        return values[self.at] - torch.lerp(values[0], values[-1], self.share)


def barrier(curve: Tensor | Sequence[float], positions: Tensor | Sequence[float]) -> Barrier:
    """Height over the straight segment between the ends, the chord: max over i of L_i - ((1 - a_i) L_0 + a_i L_n).

    Args:
        curve: Losses along the line, shape `(points,)`.
        positions: Where they were measured, from 0 to 1.

    Returns:
        The barrier; 0 or more, and exactly 0 if all losses are equal.

    Raises:
        ValueError: If there are no losses.

    Example:
        >>> barrier([1.0, 2.0, 0.0], [0.0, 0.5, 1.0])
        Barrier(value=1.5, at=1, share=0.5)
    """
    losses, shares = loss_curve(curve), on_host(positions)
    return _highest(losses, torch.lerp(losses[0], losses[-1], shares), shares)


def barrier_mean(curve: Tensor | Sequence[float]) -> Barrier:
    """Height over the mean of the ends: max over i of L_i - (L_0 + L_n) / 2.

    For a line that falls from a high end to a low one this is half of the fall.

    Args:
        curve: Losses along the line, shape `(points,)`.

    Example:
        >>> barrier_mean([1.0, 2.0, 0.0])
        Barrier(value=1.5, at=1, share=0.5)
    """
    losses = loss_curve(curve)
    shares = torch.full_like(losses, 0.5)
    return _highest(losses, torch.lerp(losses[0], losses[-1], shares), shares)


def rise_above_ends(curve: Tensor | Sequence[float]) -> Barrier:
    """Height above the worse end: max over i of L_i - max(L_0, L_n); 0 for a monotone curve.

    Args:
        curve: Losses along the line, shape `(points,)`.

    Example:
        >>> rise_above_ends([1.0, 2.0, 0.0])
        Barrier(value=1.0, at=1, share=0.0)
    """
    losses = loss_curve(curve)
    worse = float(losses[-1] > losses[0])
    return _highest(losses, losses[-1 if worse else 0].expand_as(losses), torch.full_like(losses, worse))


def _highest(losses: Tensor, baseline: Tensor, shares: Tensor) -> Barrier:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        return Barrier(math.nan, int(bad[0]), float(shares[int(bad[0])]))
    heights = losses - baseline
    at = int(heights.argmax())
    return Barrier(float(heights[at]), at, float(shares[at]))
