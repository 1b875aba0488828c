"""Random directions, in each filter as long as the filter itself (Li et al. 2018, arXiv:1712.09913)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_probes.functional.inner_product import norm
from lightning_probes.functional.wide import at_least_single


def filter_normalised(direction: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A direction rescaled to the length of the parameters, filter by filter.

    A filter is a slice along dim 0 of a tensor with two dims or more: the weights of one output. Rescaled filters in
    front of a normalisation layer then give the same plane of losses. Tensors with one dim or none (biases, scales of
    normalisation layers) do not move.

    Args:
        direction: Tensors of any length, with the names and shapes of `params`.
        params: Floating-point or complex parameters.

    Returns:
        The tensors with two dims or more, in the dtype of `params`. A filter of zeros stays zero.

    Example:
        >>> params = {"weight": torch.tensor([[3.0, 4.0], [0.0, 2.0]]), "bias": torch.ones(2)}
        >>> filter_normalised({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, params)["weight"].norm(dim=1)
        tensor([5., 2.])
    """
    return {name: _rescaled(direction[name], tensor) for name, tensor in params.items() if tensor.ndim > 1}


def random_direction(params: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """A Gaussian direction, filter-normalised.

    Args:
        params: Floating-point or complex parameters; those with two dims or more get a direction.
        generator: On the device of `params`.

    Returns:
        As `filter_normalised`.

    Example:
        >>> sorted(random_direction({"weight": torch.ones(2, 3), "bias": torch.ones(2)}))
        ['weight']
    """
    drawn = {
        name: torch.randn(
            tensor.shape, generator=generator, dtype=at_least_single(tensor).dtype, device=tensor.device
        )
        for name, tensor in params.items()
        if tensor.ndim > 1
    }  # fmt: skip
    return filter_normalised(drawn, {name: params[name] for name in drawn})


def _rescaled(direction: Tensor, like: Tensor) -> Tensor:
    rows, filters = (at_least_single(tensor.detach()).flatten(1) for tensor in (direction, like))
    if not rows.numel():
        return like.detach()
    length = norm(rows)
    factor = torch.where(length > 0, norm(filters) / length, 0.0)
    return (rows * factor.to(rows.real.dtype)[:, None]).view(like.shape).to(like.dtype)
