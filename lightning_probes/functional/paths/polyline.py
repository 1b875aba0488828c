"""A chain of points in parameter space, and places on it by their share of its length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_probes.functional.wide import on_host


def arc_lengths(points: Sequence[Tensor]) -> Tensor:
    """Length of a chain up to each of its points.

    Args:
        points: Vectors of one shape.

    Returns:
        Float64 on the CPU, shape `(points,)`; the first is 0.

    Example:
        >>> arc_lengths([torch.zeros(2), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])]).tolist()
        [0.0, 5.0, 6.0]
    """
    steps = [torch.linalg.vector_norm(there - here) for here, there in pairwise(points)]
    return on_host(torch.stack([torch.zeros_like(steps[0]), *steps])).cumsum(0)


def place_on(points: Sequence[Tensor], share: float, lengths: Tensor | None = None) -> Tensor:
    """The point at a share of a chain's length; the ends are those of the chain, bit for bit.

    Args:
        points: Vectors of one shape.
        share: From 0 to 1.
        lengths: Those of `arc_lengths`, if they are known.

    Example:
        >>> place_on([torch.zeros(1), torch.ones(1), torch.tensor([3.0])], 0.5)
        tensor([1.5000])
    """
    if share <= 0 or share >= 1:
        return points[0] if share <= 0 else points[-1]
    lengths = arc_lengths(points) if lengths is None else lengths
    place = share * float(lengths[-1])
    after = min(max(int(torch.searchsorted(lengths, place, right=True)), 1), len(points) - 1)
    step = float(lengths[after] - lengths[after - 1])
    part = (place - float(lengths[after - 1])) / step if step > 0 else 0.0
    return torch.lerp(points[after - 1], points[after], part)
