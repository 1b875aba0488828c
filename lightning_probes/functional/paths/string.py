"""A chain of low loss between two ends: AutoNEB (Draxler et al. 2018, arXiv:1803.00885) in the form of a string.

Pivots move down the gradient, but not along the chain, and are then put back at their shares of its length, so that no
springs are needed. Where the chain lies high between two pivots another one is put in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_probes.functional.paths.bezier import Gradient
from lightning_probes.functional.paths.polyline import arc_lengths, place_on

CYCLES = 4
"""Cycles of steps; pivots are put in between them."""
_BETWEEN = (0.25, 0.5, 0.75)  # of the way from one pivot to the next, where the height is measured
_HIGH = 0.1  # of the chain's range above the segment, from where on a pivot is put in
_MOST_NEW = 2  # pivots put in between two cycles


class Strung(NamedTuple):
    """A chain of pivots, both ends among them.

    Attributes:
        pivots: Where they ended.
        before: Where they were when half of the steps were done.
        gradients: How many gradients were taken.
        heights: How many losses were measured.
    """

    pivots: list[Tensor]
    before: list[Tensor]
    gradients: int
    heights: int


def string(
    gradient: Gradient, height: Callable[[Tensor], float], start: Tensor, end: Tensor, steps: int, lr: float,
    pivots: int = 3, momentum: float = 0.9,
) -> Strung:  # fmt: skip
    """Let a chain sink into a valley.

    Args:
        gradient: Of the loss, at a vector, on the batch of a number; called once for each pivot and step.
        height: The loss at a vector, without noise.
        start: First end; does not move.
        end: Last end; does not move.
        steps: Gradients to take, about: each of four cycles has as many steps, of all pivots that there are.
        lr: The learning rate; halved in the third cycle, and a fifth in the last, in which pivots come to rest.
        pivots: How many to begin with, evenly on the straight line.
        momentum: That of SGD.

    Example:
        >>> found = string(lambda x, _: 2 * x, lambda x: float(x @ x), torch.ones(2), -torch.ones(2), 60, 0.1)
        >>> bool(found.pivots[0].eq(1).all() and found.pivots[-1].eq(-1).all())
        True
    """
    chain = [start, *(torch.lerp(start, end, (k + 1) / (pivots + 1)) for k in range(pivots)), end]
    before, gradients, heights = chain, 0, 0
    tiny = torch.finfo(torch.float64).tiny  # the length of a chain between equal ends is 0
    a_cycle = max(1, steps // (CYCLES * (pivots + _MOST_NEW)))
    for cycle, rate in enumerate((lr, lr, lr / 2, lr / 5)):
        lengths = arc_lengths(chain)
        shares = (lengths / lengths[-1].clamp(min=tiny)).tolist()
        if cycle <= CYCLES // 2:
            before = chain
        velocities = [torch.zeros_like(start) for _ in chain]
        for _ in range(a_cycle):
            moved = list(chain)
            for k in range(1, len(chain) - 1):
                slope = _across(gradient(chain[k], gradients), chain[k + 1] - chain[k - 1])
                velocities[k] = momentum * velocities[k] + slope
                moved[k] = chain[k] - rate * velocities[k]
                gradients += 1
            lengths = arc_lengths(moved)
            chain = [start, *(place_on(moved, share, lengths) for share in shares[1:-1]), end]
        if cycle < CYCLES - 1:
            chain, measured = _with_new_pivots(chain, height)
            heights += measured
    return Strung(chain, before, gradients, heights)


def _across(slope: Tensor, tangent: Tensor) -> Tensor:
    """The part of a gradient that is perpendicular to a tangent."""
    squared = tangent @ tangent
    return slope - (slope @ tangent) / squared * tangent if squared > 0 else slope


def _with_new_pivots(chain: Sequence[Tensor], height: Callable[[Tensor], float]) -> tuple[list[Tensor], int]:
    """A chain with pivots where it lies highest above the straight segments of its heights; and losses measured."""
    at_pivots = [height(pivot) for pivot in chain]
    allowed = _HIGH * (max(at_pivots) - min(at_pivots))
    excess: dict[int, tuple[float, Tensor]] = {}
    for k, (here, there) in enumerate(pairwise(chain)):
        for part in _BETWEEN:
            point = torch.lerp(here, there, part)
            above = height(point) - ((1 - part) * at_pivots[k] + part * at_pivots[k + 1])
            if above > max(allowed, excess[k][0] if k in excess else 0.0):
                excess[k] = above, point
    highest = sorted(excess, key=lambda k: -excess[k][0])[:_MOST_NEW]
    grown = list(chain)
    for k in sorted(highest, reverse=True):
        grown.insert(k + 1, excess[k][1])
    return grown, len(chain) + len(_BETWEEN) * (len(chain) - 1)
