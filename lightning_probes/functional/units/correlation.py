"""Correlations between the outputs of the units of two networks, from sums over samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_probes.functional.wide import on_host, widest

_CONSTANT = 1e-12  # a variance below this share of the mean square is rounding


def pair_sums(here: Tensor, there: Tensor) -> Tensor:
    """What the correlations of units are formed from. Sums of different samples, on any process, are added.

    Args:
        here: Outputs of one network's units for some samples, shape `(samples, units)`. Positions in an image or a
            sequence count as samples.
        there: Outputs of the other network's units for the same samples, like `here`.

    Returns:
        Shape `(units + 5, units)`, in the device's widest dtype: products of each unit with each unit, then sums and
        sums of squares of the first network, the same of the second, and the number of samples.
    """
    here, there = (outputs.detach().to(widest(outputs.device)) for outputs in (here, there))
    moments = [sums for outputs in (here, there) for sums in (outputs.sum(0), outputs.square().sum(0))]
    count = torch.full_like(moments[0], len(here))
    return torch.cat([here.T @ there, torch.stack([*moments, count])])


def correlations(sums: Tensor) -> Tensor:
    """Pearson's correlation of each unit of one network with each unit of the other.

    Args:
        sums: Of `pair_sums`, added up.

    Returns:
        Shape `(units, units)`, float64, on the CPU. A unit whose output is constant has correlation 0 with any other.

    Example:
        >>> here = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 1.0]])
        >>> correlations(pair_sums(here, here.flip(1))).round()
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    units = sums.shape[1]
    products, (here, here_squared, there, there_squared, count) = on_host(sums)[:units], on_host(sums)[units:]
    count = count.clamp(min=1)
    covariance = products / count - torch.outer(here / count, there / count)
    scales = []
    for total, squared in ((here, here_squared), (there, there_squared)):
        variance = squared / count - (total / count).square()
        scales.append(torch.where(variance > _CONSTANT * squared / count, variance.rsqrt(), 0))
    found: Tensor = covariance * torch.outer(*scales)
    return found
