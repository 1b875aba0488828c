"""Second derivatives that autograd misses, found by comparing products H v with finite differences of gradients.

A backward pass that autograd can't differentiate, such as that of a fused kernel, gives correct gradients. Autograd
then takes their derivative as zero, without an error. Finite differences show what is missing: compare
(g(θ + h v) - g(θ - h v)) / 2h with H v.

A kink (ReLU, max-pooling) between the two points makes the difference wrong instead. Such a difference depends on the
step h, while missing curvature does not. In float32 the rounding of the gradients hides both, hence float64.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_probes.functional.curvature.hvp import Loss, gradient, hvp
from lightning_probes.functional.inner_product import inner_product, norm
from lightning_probes.functional.parameter_vector import to_dict, to_vector

_STEPS = (1e-6, 1e-7, 1e-8)  # relative to the parameters
ROUNDING = 1e3 * torch.finfo(torch.float64).eps  # of a gradient, relative to its length


@dataclass(frozen=True)
class Missing:
    """How products with the Hessian disagree with finite differences of gradients.

    Attributes:
        error: The smallest relative error over the directions.
        parameters: Names of the parameters whose part of a product is wrong.
        symmetric: Whether autograd's matrix is symmetric nevertheless. It is, for example, if parts of the loss are
            held constant on purpose (`detach`).
    """

    error: float
    parameters: tuple[str, ...]
    symmetric: bool


def missing_curvature(
    loss: Loss, params: Mapping[str, Tensor], generator: torch.Generator, directions: int = 3, tolerance: float = 1e-3
) -> Missing | None:
    """Compare Hessian-vector products with central differences of gradients along random directions.

    Args:
        loss: Maps a parameter dict to a tensor with one element; deterministic.
        params: The point at which to differentiate, in float64.
        generator: Draws the directions.
        directions: Maximum number of directions; the comparison ends at the first that agrees.
        tolerance: Largest relative error that counts as agreement.

    Returns:
        None if a direction agrees, or if it can't be judged because a value is not finite or the gradient has kinks.

    Example:
        >>> params = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
        >>> missing_curvature(lambda p: (p["w"] ** 3).sum(), params, torch.Generator())
    """
    slope = gradient(loss, params)[1]
    rounding = ROUNDING * float(norm(slope))
    vectors: list[Tensor] = []
    products: list[Tensor] = []
    errors: list[float] = []
    lost: tuple[str, ...] = ()
    for direction in random_directions(params, generator, directions):
        # Skip weights whose gradient is forced to zero (the padding row of an embedding): they still change the loss.
        vector = direction * (slope != 0)
        product = hvp(loss, params, vector)
        difference = settled(partial(_difference, loss, params, vector), product, tolerance, rounding)
        if difference is None:
            return None
        scale = max(float(norm(difference)), float(norm(product)))
        errors.append(float(norm(difference - product)) / scale)
        lost = lost or _parts(params, difference - product, tolerance * scale)
        vectors.append(vector)
        products.append(product)
    first, second = (inner_product(vectors[one], products[1 - one]) for one in (0, 1))
    scale = max(float(norm(vectors[one]) * norm(products[1 - one])) for one in (0, 1))
    return Missing(min(errors), lost, symmetric=abs(float(first - second)) <= 1e-6 * scale)


def settled(
    difference_at: Callable[[float], Tensor], derivative: Tensor, tolerance: float, rounding: float
) -> Tensor | None:
    """The difference quotient, if two steps give the same one and it disagrees with autograd's derivative.

    Args:
        difference_at: Maps a step size, relative to the moved tensors, to the difference quotient.
        derivative: The derivative by autograd.
        tolerance: Largest relative error that counts as agreement.
        rounding: Rounding error of the values whose difference is taken.

    Returns:
        None if both agree, a value is not finite, or there is a kink between the points.
    """
    before: Tensor | None = None
    for step in _STEPS:
        difference = difference_at(step)
        error = float(norm(difference - derivative))
        if not error > max(tolerance * float(norm(difference)), rounding / step):  # equal, or not finite
            return None
        if before is not None and float(norm(difference - before)) <= 0.1 * error:
            return difference
        before = difference
    return None


def random_directions(
    params: Mapping[str, Tensor], generator: torch.Generator, number: int, moved: Collection[str] | None = None
) -> Iterator[Tensor]:
    """Random directions in which each parameter's part is as long as the parameter; zero outside `moved`."""
    for _ in range(number):
        parts = {}
        for name, tensor in params.items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
            size = tensor.square().mean().sqrt() if tensor.numel() else tensor.new_ones(())
            parts[name] = noise * torch.where(size > 0, size, 1.0) * (moved is None or name in moved)
        yield to_vector(parts)


def _difference(loss: Loss, params: Mapping[str, Tensor], vector: Tensor, step: float) -> Tensor:
    forward, backward = (
        gradient(loss, {name: params[name] + sign * step * part for name, part in to_dict(vector, like=params).items()})
        for sign in (1, -1)
    )
    return (forward[1] - backward[1]) / (2 * step)


def _parts(params: Mapping[str, Tensor], difference: Tensor, allowed: float) -> tuple[str, ...]:
    """The parameters for which the norm of the difference exceeds the allowed value."""
    parts = to_dict(difference, like=params)
    return tuple(name for name, part in parts.items() if float(norm(part.flatten())) > allowed)
