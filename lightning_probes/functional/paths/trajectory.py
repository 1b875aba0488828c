"""Principal components of a trajectory in parameter space, by the Gram matrix of its points.

For k points with n parameters each, the matrix of inner products is k x k; an n x n covariance is never formed. The
first components explain most of a random walk, too (Antognini and Sohl-Dickstein 2018, arXiv:1806.08805), so the share
that they explain is to be read beside that of a walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.wide import on_host

_PIECE = 2**20  # numbers of each point that are compared at a time


def differences_gram(points: Sequence[Mapping[str, Tensor]], origin: Mapping[str, Tensor]) -> Tensor:
    """Inner products of the differences between points and an origin.

    Args:
        points: Parameters by name, on any device; tensors of `origin` that are not real floating-point are left out.
        origin: Parameters with the same names and shapes.

    Returns:
        Shape `(points, points)`, float64, on the CPU. Memory: a million numbers of each point in float64.

    Raises:
        ValueError: If a point has other names or shapes.

    Example:
        >>> differences_gram([{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([1.0, 0.0])}], {"w": torch.zeros(2)})
        tensor([[25.,  3.],
                [ 3.,  1.]], dtype=torch.float64)
    """
    gram = on_host(0.0).new_zeros(len(points), len(points))
    for name, start in _real(origin):
        for point in points:
            if name not in point or point[name].shape != start.shape:
                raise ValueError(f"{name!r} is missing, or of another shape, in one of the points of the trajectory")
        size = start.numel()
        for low in range(0, size, _PIECE):
            piece = slice(low, low + _PIECE)
            moved = torch.stack([on_host(point[name].reshape(-1)[piece]) for point in points])
            moved -= on_host(start.reshape(-1)[piece])
            gram += moved @ moved.T
    return gram


def combined(
    points: Sequence[Mapping[str, Tensor]], origin: Mapping[str, Tensor], weights: Tensor
) -> list[dict[str, Tensor]]:
    """Weighted sums of the differences between points and an origin.

    Args:
        points: As for `differences_gram`.
        origin: As for `differences_gram`.
        weights: Shape `(points, sums)`.

    Returns:
        A dict a sum, in the dtype and on the device of `origin`; summed in float64 on the CPU.
    """
    sums: list[dict[str, Tensor]] = [{} for _ in range(weights.shape[1])]
    for name, start in _real(origin):
        base = on_host(start)
        for total, column in zip(sums, weights.T.tolist(), strict=True):
            value = torch.zeros_like(base)
            for point, weight in zip(points, column, strict=True):
                value.add_(on_host(point[name]) - base, alpha=weight)
            total[name] = value.to(start)
    return sums


@dataclass(frozen=True)
class Components:
    """Principal components of points about an origin that is not their mean.

    Attributes:
        explained: Share of the squared distances from the origin that each component explains, shape `(points,)`,
            largest first.
        coordinates: The points along the first two components, shape `(points, 2)`. The largest coordinate along each
            is positive.
        weights: The unit vectors of the first two components as sums of the differences, shape `(points, 2)`; see
            `combined`.
    """

    explained: Tensor
    coordinates: Tensor
    weights: Tensor


def components(gram: Tensor) -> Components:
    """Principal components from the inner products of differences.

    Args:
        gram: From `differences_gram`, for two points or more.

    Raises:
        ValueError: If the points and the origin are on one line, so that they have no second component.

    Example:
        >>> components(torch.tensor([[4.0, 0.0], [0.0, 1.0]])).explained
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    values, vectors = (found.flip(-1) for found in torch.linalg.eigh(on_host(gram)))
    if len(values) < 2 or not values[1] > 1e-12 * values[0]:
        raise ValueError("the points and the origin are on one line, or equal, so that they span no plane")
    vectors, lengths = vectors[:, :2], values[:2].sqrt()
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    return Components(values / values.sum(), vectors * lengths, vectors / lengths)


def explained_by_random_walk(gram: Tensor) -> Tensor:
    """What the components of a random walk explain, which has as many steps as a trajectory, of the same lengths.

    In many dims, steps in random directions are orthogonal, so that the inner products of the walk's points, relative
    to its end, are sums of squared step lengths. No walk is drawn. For steps of equal length the first two shares tend
    to 8 / pi^2 = 0.81 and 0.09.

    Args:
        gram: Inner products of the trajectory's points in their order, relative to its end, which is not among them;
            from `differences_gram`.

    Returns:
        As `Components.explained`.

    Example:
        >>> explained_by_random_walk(torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
        tensor([0.8727, 0.1273], dtype=torch.float64)
    """
    inner = torch.nn.functional.pad(on_host(gram), (0, 1, 0, 1))
    squares = inner.diagonal()
    steps = squares[:-1] + squares[1:] - 2 * inner.diagonal(1)
    still_to_go = steps.flip(0).cumsum(0).flip(0)
    order = torch.arange(len(steps))
    walk = still_to_go[torch.maximum(order[:, None], order[None])]
    values = torch.linalg.eigvalsh(walk).flip(0)
    shares: Tensor = values / values.sum()
    return shares


def _real(params: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor.detach()) for name, tensor in params.items() if tensor.is_floating_point())
