"""The squared norm of a loss's gradient, and its own gradient."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lightning_probes.functional.curvature.hvp import Loss, linearize
from lightning_probes.functional.parameter_vector import to_vector


def squared_gradient(loss: Loss, params: Mapping[str, Tensor], but: Collection[str] = ()) -> tuple[Tensor, Tensor]:
    """The squared norm of a loss's gradient, and the gradient of this number: 2 H g, with the Hessian H.

    Args:
        loss: See `hvp`; use the same kernels.
        params: The point at which to differentiate.
        but: Names of parameters whose part of the gradient is left out of the norm. It still depends on them.

    Returns:
        The squared norm, shape `()`, and a vector laid out as `to_vector(params)`. Cost: one forward pass, one backward
        pass that builds a graph, and one backward pass through both.

    Example:
        >>> squared_gradient(lambda p: (p["w"] ** 2).sum(), {"w": torch.tensor([1.0, 2.0])})
        (tensor(20.), tensor([ 8., 16.]))
    """
    about = linearize(loss, params)
    slope = about.gradient
    if but:
        counted = {name: torch.full_like(tensor, float(name not in but)) for name, tensor in params.items()}
        slope = slope * to_vector(counted)
    return slope.square().sum(), about(2 * slope)
