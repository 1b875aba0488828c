"""The ascent step of sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_probes.functional.inner_product import norm
from lightning_probes.functional.parameter_vector import to_dict


def ascent_step(params: Mapping[str, Tensor], gradient: Tensor, rho: float) -> dict[str, Tensor]:
    """Parameters moved by a distance rho along the gradient: to first order the worst point in the ball of radius rho.

    SAM sharpness is the loss at this point minus the loss at `params`, both on the samples that gave the gradient. It
    is larger on fewer samples.

    Args:
        params: Parameters to move, all by one common step.
        gradient: Gradient of the loss, laid out as `to_vector(params)`.
        rho: Length of the step, in parameter units.

    Returns:
        `params + rho * gradient / ||gradient||`, in the dtypes of `params`; `params` themselves if the gradient is
        zero.

    Raises:
        ValueError: If `gradient` does not fit `params`.

    Example:
        >>> ascent_step({"w": torch.zeros(2)}, gradient=torch.tensor([3.0, 4.0]), rho=0.5)
        {'w': tensor([0.3000, 0.4000])}
    """
    length = norm(gradient)
    step = gradient * torch.where(length == 0, 0.0, rho / length)
    return {name: params[name].detach() + part for name, part in to_dict(step, like=params).items()}
