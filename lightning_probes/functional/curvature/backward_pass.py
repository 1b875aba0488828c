"""Checks of one operation's backward pass: can autograd differentiate it, and is it the derivative of the forward pass?

The backward pass of y = f(x) maps x and a gradient g with respect to y to b(x, g), a gradient with respect to x. If it
is written with differentiable operations, the derivative of b by autograd agrees with a finite difference of b. Whether
b is the derivative of f is a separate question: for a straight-through estimator it is not, although autograd can
differentiate b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_probes.functional.curvature.missing_curvature import ROUNDING, random_directions, settled
from lightning_probes.functional.inner_product import inner_product, norm
from lightning_probes.functional.parameter_vector import to_dict, to_vector

# Maps tensors to the differentiable outputs; deterministic.
Operation: TypeAlias = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
Point: TypeAlias = Mapping[str, Tensor]

_DIRECTIONS = 3  # a comparison ends at the first direction that agrees
_WEIGHTS = 4  # random vectors that a result is projected on; each gives one number
_TOLERANCE = 1e-3  # largest relative error of a derivative that agrees


def is_backward_unseen(operation: Operation, inputs: Point, generator: torch.Generator) -> bool:
    """Whether autograd's derivative of a backward pass disagrees with finite differences, along random directions.

    Inputs and incoming gradients are moved separately. A kernel that autograd can't differentiate hides both
    derivatives. A factor that is computed outside the graph hides only the one with respect to the inputs. The backward
    pass is linear in the incoming gradients, so that this part has no kinks.

    Args:
        operation: The operation whose backward pass is checked.
        inputs: Tensors to differentiate with respect to, under any names, in float64.
        generator: Draws directions and gradients.

    Returns:
        Whether all directions disagree. Values that are not finite, and kinks, count as agreement.

    Example:
        >>> point = {"x": torch.tensor([1.0, 2.0], dtype=torch.float64)}
        >>> is_backward_unseen(lambda inputs: [inputs["x"].exp()], point, torch.Generator())
        False
    """
    incoming = {f"gradient {i}": _noise(output, generator) for i, output in enumerate(_outputs(operation, inputs))}
    point = {**inputs, **incoming}

    def backward(leaves: Point, create_graph: bool = False) -> Tensor:
        own = {name: leaves[name] for name in inputs}
        return _backward(operation, own, [leaves[name] for name in incoming], create_graph)

    def disagree(direction: Tensor) -> bool:
        leaves = _leaves(point)
        value = backward(leaves, create_graph=True)
        weights = [_noise(value, generator) for _ in range(_WEIGHTS)]
        derivative = torch.stack([inner_product(_slope(value, weight, leaves), direction) for weight in weights])

        def difference(step: float) -> Tensor:
            ahead, behind = (backward(_leaves(moved)).detach() for moved in _ends(point, direction, step))
            return torch.stack([inner_product(weight, (ahead - behind) / (2 * step)) for weight in weights])

        return settled(difference, derivative, _TOLERANCE, ROUNDING * float(norm(value.detach()))) is not None

    return any(
        all(disagree(direction) for direction in random_directions(point, generator, _DIRECTIONS, moved))
        for moved in (incoming, inputs)
    )


def is_backward_of_another(operation: Operation, inputs: Point, generator: torch.Generator) -> bool:
    """Whether a backward pass disagrees with finite differences of the forward pass, along random directions.

    Args:
        operation: The operation whose passes are compared.
        inputs: Tensors to differentiate with respect to, under any names, in float64.
        generator: Draws directions and gradients.

    Returns:
        Whether all directions disagree. Values that are not finite, and kinks, count as agreement.

    Example:
        >>> point = {"x": torch.tensor([1.2, 2.3], dtype=torch.float64)}
        >>> straight_through = lambda inputs: [inputs["x"] + (inputs["x"].round() - inputs["x"]).detach()]
        >>> is_backward_of_another(straight_through, point, torch.Generator())
        True
    """
    here = _outputs(operation, inputs)
    weights = [[_noise(output, generator) for output in here] for _ in range(_WEIGHTS)]
    slopes = [_backward(operation, _leaves(inputs), weight) for weight in weights]
    middle = _flat(here)
    rounding = ROUNDING * float(norm(middle))

    def disagree(direction: Tensor) -> bool:
        derivative = torch.stack([inner_product(slope, direction) for slope in slopes])

        def difference(step: float) -> Tensor:
            ahead, behind = (_flat(_outputs(operation, moved)) for moved in _ends(inputs, direction, step))
            if float(norm(ahead + behind - 2 * middle)) > _TOLERANCE * float(norm(ahead - behind)) + rounding:
                return derivative  # a kink: the slopes on both sides differ
            return torch.stack([inner_product(_flat(weight), (ahead - behind) / (2 * step)) for weight in weights])

        return settled(difference, derivative, _TOLERANCE, rounding) is not None

    return all(disagree(direction) for direction in random_directions(inputs, generator, _DIRECTIONS))


def _outputs(operation: Operation, inputs: Point) -> list[Tensor]:
    with torch.enable_grad():
        return [output.detach() for output in operation(_writable(_leaves(inputs)))]


def _backward(operation: Operation, leaves: Point, incoming: Sequence[Tensor], create_graph: bool = False) -> Tensor:
    with torch.enable_grad():
        outputs = operation(_writable(leaves))
        gradients = torch.autograd.grad(
            outputs, list(leaves.values()), incoming, create_graph=create_graph, materialize_grads=True
        )
    return to_vector(dict(zip(leaves, gradients, strict=True)))


def _slope(value: Tensor, weight: Tensor, leaves: Point) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(to_vector(leaves)).detach()
    gradients = torch.autograd.grad(value, list(leaves.values()), weight, materialize_grads=True, retain_graph=True)
    return to_vector(dict(zip(leaves, gradients, strict=True)))


def _ends(point: Point, direction: Tensor, step: float) -> list[dict[str, Tensor]]:
    """The points one step ahead and one step behind."""
    parts = to_dict(direction, like=point)
    return [{name: point[name] + sign * step * part for name, part in parts.items()} for sign in (1, -1)]


def _leaves(point: Point) -> dict[str, Tensor]:
    return {name: tensor.detach().requires_grad_() for name, tensor in point.items()}


def _writable(leaves: Point) -> dict[str, Tensor]:
    """Copies, because an operation may write to its inputs in place, which autograd forbids for leaves."""
    return {name: leaf.clone() for name, leaf in leaves.items()}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
