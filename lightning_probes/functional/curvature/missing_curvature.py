"""Second derivatives that autograd does not have, found by comparing with differences of first derivatives.

A backward pass that autograd can't follow, such as that of a fused kernel, gives right gradients. Their own derivative
is taken as zero, without an error. Differences of gradients see what is missing:
(g(θ + h v) - g(θ - h v)) / 2h against H v.

Differences fail by themselves at a kink (ReLU, max-pooling) between the two points. They then depend on the step, while
what autograd does not have stays the same. In float32 the rounding of the gradients hides both.
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
    """How products with the Hessian disagree with differences of gradients.

    Attributes:
        error: The least relative error of a direction.
        parameters: Names of those whose part of a product is wrong.
        symmetric: Whether what autograd gives is symmetric all the same, as the Hessian of a loss is whose parts are
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
        loss: Maps a parameter dict to a tensor with one element, the same in every call.
        params: Where to differentiate, in float64.
        generator: Draws the directions.
        directions: How many; the first that agrees ends the comparison.
        tolerance: Largest relative error of a product that agrees.

    Returns:
        None if a direction agrees, or can't be judged because a value is not finite or the gradient has kinks there.

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
        # A weight whose gradient is kept at zero, as the row of an embedding's padding, does move the loss.
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
    """A difference quotient, if two steps give the same one, and that is not the derivative.

    Args:
        difference_at: Gives it for a step relative to what is moved.
        derivative: What autograd has.
        tolerance: Largest relative error of a derivative that agrees.
        rounding: Of what the difference is taken of.

    Returns:
        None if it agrees, is not finite, or has a kink between the points.
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
    """Random directions, each parameter's part as long as the parameter; zero for those that are not to be moved."""
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
    """The parameters in whose part a vector is larger than is allowed of all of it."""
    parts = to_dict(difference, like=params)
    return tuple(name for name, part in parts.items() if float(norm(part.flatten())) > allowed)
