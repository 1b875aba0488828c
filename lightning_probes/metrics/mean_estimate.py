"""A mean with its standard error, accumulated over batches and processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_probes.functional.wide import on_host


class Estimate(NamedTuple):
    """A mean over ``count`` values.

    Attributes:
        mean: NaN if there are no values.
        standard_error: Standard error of the mean over the values (ddof 1); None for fewer than two values.
        count: Number of values.
    """

    mean: float
    standard_error: float | None
    count: int  # type: ignore[assignment]  # hides tuple.count, which nothing needs


class MeanEstimate(Metric):
    """Mean and standard error of the mean of values that arrive in batches, on any number of processes.

    With weights it is the weighted mean. A weight is the number of samples that a value averages over, such as the size
    of a micro-batch for its loss. The variance of a value is then proportional to 1 / weight, and
    Σ w (x - mean)² / ((count - 1) Σ w) is an unbiased estimate of the squared standard error. Equal weights of any size
    give the unweighted result.

    Moments are kept in float64 about the running mean and merged (Chan, Golub & LeVeque 1983), so that a spread much
    smaller than the mean keeps its digits. Nothing is filtered: a non-finite value makes the result non-finite.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> estimate = MeanEstimate()
        >>> estimate.update(torch.tensor([1.0, 2.0]))
        >>> estimate.update(torch.tensor([3.0]))
        >>> estimate.compute()
        Estimate(mean=2.0, standard_error=0.5773502691896257, count=3)
    """

    full_state_update = False

    moments: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("moments", on_host([0.0] * 4), dist_reduce_fx=_merge)

    def update(self, values: Tensor | float, weights: Tensor | float | Sequence[float] = 1.0) -> None:
        """Add values.

        Args:
            values: Any shape, one value per sample (or per micro-batch).
            weights: Positive, expands to the shape of ``values``: the number of samples behind each value.
        """
        values = on_host(values)
        weights = on_host(weights).expand_as(values).flatten()
        values = values.flatten()
        if not len(values):
            return
        ones, zeros = torch.ones_like(values), torch.zeros_like(values)
        batch = _merge(torch.stack([ones, weights, values, zeros], dim=1))
        self.moments = _merge(torch.stack([self.moments, batch.to(self.moments.device)]))

    def compute(self) -> Estimate:
        """The mean over everything seen by all processes."""
        count, weight, mean, scatter = self.moments.tolist()
        standard_error = math.sqrt(scatter / ((count - 1) * weight)) if count > 1 else None
        return Estimate(mean if count else math.nan, standard_error, int(count))


def estimate_mean(values: Tensor, weights: Tensor | float | Sequence[float] = 1.0) -> Estimate:
    """Mean and standard error of values that every process already has; see `MeanEstimate.update`.

    Example:
        >>> estimate_mean(torch.tensor([1.0, 2.0, 3.0])).mean
        2.0
    """
    estimate = MeanEstimate(sync_on_compute=False)
    estimate.update(values, weights)
    return estimate.compute()


def _merge(moments: Tensor) -> Tensor:
    """Merge rows (count, sum of weights, mean, weighted squares about it); the row of one value is (1, w, x, 0)."""
    count, weight, mean, scatter = moments.unbind(-1)
    total = weight.sum()
    merged = (weight * mean).sum() / total
    return torch.stack([count.sum(), total, merged, (scatter + weight * (mean - merged).square()).sum()])
