"""The straight line between two points in parameter space, and the loss along it.

Linear interpolation from the initialisation (Goodfellow et al. 2015, arXiv:1412.6544), its monotonicity and distances
(Lucas et al. 2021, arXiv:2104.11044), and its plateau (Frankle 2020, arXiv:2012.06898).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.inner_product import norm
from lightning_probes.functional.wide import on_host, widest


def alphas(num: int) -> Tensor:
    """Evenly spaced positions on the line, both ends included exactly.

    Args:
        num: Number of positions.

    Returns:
        Float64 tensor on the CPU, shape `(num,)`, from 0.0 to 1.0.

    Raises:
        ValueError: If `num` is below 2.

    Example:
        >>> alphas(3).tolist()
        [0.0, 0.5, 1.0]
    """
    if num < 2:
        raise ValueError(f"num_alphas must be at least 2 (both ends of the line), got {num}")
    return on_host([index / (num - 1) for index in range(num)])


def lerp_params(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The point (1 - alpha) start + alpha end.

    Args:
        start: Parameters at alpha 0; converted to the device and dtype of `end`.
        end: Parameters at alpha 1. Tensors that are not floating-point or complex (counters, masks, indices) are taken
            from here at every alpha.
        alpha: Position; 0 gives `start` and 1 gives `end`, bit for bit.

    Returns:
        A dict with the keys and order of `end`, detached; at both ends it shares memory with the input.

    Raises:
        ValueError: If the two have different names or shapes.

    Example:
        >>> lerp_params({"w": torch.zeros(2)}, {"w": torch.ones(2)}, alpha=0.25)
        {'w': tensor([0.2500, 0.2500])}
    """
    _check_same_layout(start, end)
    return {name: _lerp(start[name], tensor, alpha) for name, tensor in end.items()}


def distance(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> tuple[float, float]:
    """Euclidean distance between two parameter dicts, absolute and relative to the length of the first.

    Args:
        start: Parameters to measure from. Leave buffers out: running statistics are not weights.
        end: Parameters to measure to. Tensors that are not floating-point or complex are skipped.

    Returns:
        `||end - start||` and `||end - start|| / ||start||`, in float64 if the device supports it. The second is
        infinite if only `start` is zero, and nan if both are zero.

    Raises:
        ValueError: If the two have different names or shapes.

    Example:
        >>> distance({"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])})
        (5.0, 2.5)
    """
    _check_same_layout(start, end)
    lengths: list[Tensor] = []
    for name, to in end.items():
        if _interpolable(to):
            wide = torch.promote_types(to.dtype, widest(to.device))
            here, there = (tensor.detach().to(to.device, wide).flatten() for tensor in (start[name], to))
            lengths.append(torch.stack([norm(there - here), norm(here)]))
    if not lengths:
        return 0.0, math.nan
    moved, at_start = torch.linalg.vector_norm(
        on_host(torch.stack([length.to(lengths[0].device) for length in lengths])), dim=0
    )
    return float(moved), float(moved / at_start)


@dataclass(frozen=True)
class Rise:
    """The largest rise along a curve.

    Args:
        value: Height of the rise, in the unit of the curve; 0 for a curve that never rises.
        low: Index of the point where the rise starts.
        high: Index of the point where the rise ends, at or after `low`.
    """

    value: float
    low: int
    high: int


def max_rise(losses: Tensor | Sequence[float]) -> Rise:
    """Largest rise of a curve: the maximum over j of L_j - min_{i <= j} L_i.

    The smallest Delta for which the curve is Delta-monotone (Lucas et al. 2021, arXiv:2104.11044): 0 if and only if it
    never increases. A rise within the last interval counts.

    Args:
        losses: Losses along the line, shape `(points,)`.

    Returns:
        The rise, with the first pair of points that has it. If a loss is not finite, the value is nan and both indices
        point to the first such loss.

    Raises:
        ValueError: If there are no losses.

    Example:
        >>> max_rise([3.0, 1.0, 1.5, 0.5, 0.6])
        Rise(value=0.5, low=1, high=2)
    """
    curve = loss_curve(losses)
    bad = (~curve.isfinite()).nonzero()
    if len(bad):
        first = int(bad[0])
        return Rise(math.nan, first, first)
    rises = curve - curve.cummin(0).values
    high = int(rises.argmax())
    low = int(curve[: high + 1].argmin())
    return Rise(float(rises[high]), low, high)


def plateau_fraction(losses: Tensor | Sequence[float], share: float = 0.9) -> float:
    """Share of the points at which the loss is still above `share` times the loss at the start.

    For modern networks the loss stays near its initial value until close to the trained end (Frankle 2020,
    arXiv:2012.06898).

    Args:
        losses: Losses at evenly spaced positions on the line, shape `(points,)`.
        share: Points with a loss above this share of the first loss are on the plateau.

    Returns:
        A number in [0, 1], counting the first point; nan if a loss is not finite, or if the first loss is not positive,
        because a share of it is then meaningless.

    Raises:
        ValueError: If there are no losses.

    Example:
        >>> plateau_fraction([2.0, 1.9, 1.0, 0.1])
        0.5
    """
    curve = loss_curve(losses)
    if not bool(curve.isfinite().all()) or curve[0] <= 0:
        return math.nan
    return float(on_host(curve > share * curve[0]).mean())


def _lerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    end = end.detach()
    if alpha == 1 or not _interpolable(end):
        return end
    start = start.detach().to(end)
    return start if alpha == 0 else torch.lerp(start, end, alpha)  # lerp alone turns -0.0 at an end into 0.0


def _interpolable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _check_same_layout(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> None:
    if start.keys() != end.keys():
        names = sorted(start.keys() ^ end.keys())
        raise ValueError(f"start and end must hold the same names; only one of them has {', '.join(names[:5])}")
    for name, tensor in end.items():
        if start[name].shape != tensor.shape:
            shapes = f"{tuple(start[name].shape)} in start and {tuple(tensor.shape)} in end"
            raise ValueError(f"{name!r} has shape {shapes}; both ends of a line need the same architecture")


def loss_curve(losses: Tensor | Sequence[float]) -> Tensor:
    """Losses along a line as a vector in float64 on the CPU.

    Raises:
        ValueError: If they are not a vector with at least one element.
    """
    curve = on_host(losses)
    if curve.ndim != 1 or curve.numel() == 0:
        raise ValueError(f"losses must be a vector with at least one element, got shape {tuple(curve.shape)}")
    return curve
