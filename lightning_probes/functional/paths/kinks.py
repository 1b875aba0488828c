"""How far the gradient of a loss changes at kinks, which its Hessian does not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_probes.functional.inner_product import norm


def kink_gap(
    gradient: Callable[[Mapping[str, Tensor]], Tensor],
    product: Tensor,
    params: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    step: float,
) -> float:
    """Relative difference between the change of the gradient over a finite step and the Hessian-vector product.

    ``|(g(θ + e d) - g(θ - e d)) / 2e - H d| / |H d|``. For a smooth loss it goes to 0 with the square of e. A network
    of ReLUs has kinks, at which the gradient jumps and the Hessian is blind.

    Args:
        gradient: Maps a parameter dict to the gradient as a vector.
        product: H d at `params`, laid out as the gradient.
        params: The point θ.
        direction: The direction d, with some of the names of `params`.
        step: The step e.

    Returns:
        The difference; infinite if only the product is zero, nan if both are. Cost: two gradients.

    Example:
        >>> at, along = {"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])}  # of w^4
        >>> kink_gap(lambda params: 4 * params["w"] ** 3, torch.tensor([12.0]), at, along, step=0.3)
        0.0300
    """

    def moved(by: float) -> Tensor:
        return gradient({
            name: torch.add(tensor, direction[name], alpha=by) if name in direction else tensor
            for name, tensor in params.items()
        })  # fmt: skip

    change = (moved(step) - moved(-step)).div_(2 * step)
    return float(norm(change.sub_(product)) / norm(product))
