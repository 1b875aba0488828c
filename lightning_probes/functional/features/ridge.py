"""Ridge regression in closed form, with the exact leave-one-out error for every penalty, from one eigendecomposition.

For n samples with centred features z, divided by one number for all of them so that a penalty is relative, and targets
y, minimize |y - b - Z w|^2 / n + lambda |w|^2. With Z^T Z / n = V diag(s) V^T and Q = Z V, the fitted values are

    mean(y) + Q diag(1 / (s + lambda)) Q^T y / n,

and the leverage of sample i is h_i = 1/n + sum_j Q_ij^2 / (n (s_j + lambda)). A fit without sample i, with n lambda and
the unit of the features as before, errs on it by (y_i - fitted_i) / (1 - h_i). If there are more features than samples,
the same follows from Z Z^T / n = U diag(s) U^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_probes.functional.features.cka import centre

LAMBDAS = tuple(10 ** (-6 + k / 2) for k in range(17))
"""Penalties to choose from, relative to the mean squared length of a centred row of features."""

_COLUMNS = 512  # fitted values of as many targets and penalties are in memory at a time


class Linear(NamedTuple):
    """A linear map of features, (n, d), to values, (n, k)."""

    weights: Tensor
    offset: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """The values of samples."""
        return features @ self.weights + self.offset


@dataclass(frozen=True, eq=False)
class Ridge:
    """All ridge regressions on the features of some samples.

    Args:
        mean: (d,), the features' mean.
        scale: Their unit: the root mean square length of a centred row, or 1 if all rows are equal.
        spectrum: (r,), s.
        left: (n, r), Q; or U if there are more features than samples.
        right: (n, r), Q; or n U diag(s).
        basis: (d, r), V; or Z^T U.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
        >>> Ridge.of(x).of_targets(2 * x + 1).fit(0.0)(x + 10).squeeze()
        tensor([21., 23., 25., 27.], dtype=torch.float64)
    """

    mean: Tensor
    scale: Tensor
    spectrum: Tensor
    left: Tensor
    right: Tensor
    basis: Tensor

    @classmethod
    def of(cls, features: Tensor, moments: Tensor | None = None) -> Ridge:
        """From features, (n, d), in float64. Costs one eigendecomposition of the smaller side.

        Args:
            features: The features.
            moments: X^T X of the features, if it is known and they are nearly centred.
        """
        n, d = features.shape
        mean = features.mean(0)
        z = centre(features)
        scale = (z.square().sum() / n).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        z /= scale
        if d > n:
            spectrum, vectors = torch.linalg.eigh(z @ z.mT / n)
            spectrum = spectrum.clamp(min=0)
            return cls(mean, scale, spectrum, vectors, n * spectrum * vectors, z.mT @ vectors)
        gram = z.mT @ z / n if moments is None else (moments / n - mean[:, None] * mean) / scale.square()
        spectrum, vectors = torch.linalg.eigh(gram)
        coordinates = z @ vectors
        return cls(mean, scale, spectrum.clamp(min=0), coordinates, coordinates, vectors)

    def of_targets(self, targets: Tensor) -> RidgeOfTargets:
        """The regressions of some targets, (n, k)."""
        mean = targets.mean(0)
        centred = targets - mean
        return RidgeOfTargets(self, mean, centred, self.left.mT @ centred / len(targets))


@dataclass(frozen=True, eq=False)
class RidgeOfTargets:
    """The ridge regressions of some targets, for any penalty.

    Args:
        ridge: The features.
        mean: (k,), the targets' mean.
        centred: (n, k), the targets minus their mean.
        projected: (r, k), their products with the eigenvectors.
    """

    ridge: Ridge
    mean: Tensor
    centred: Tensor
    projected: Tensor

    def fit(self, penalty: float) -> Linear:
        """The regression with one penalty."""
        weights = self.ridge.basis @ self._filtered(penalty) / self.ridge.scale
        return Linear(weights, self.mean - self.ridge.mean @ weights)

    def fitted(self, penalty: float) -> Tensor:
        """(n, k), its values for the samples that it is fitted to."""
        return self.mean + self.ridge.right @ self._filtered(penalty)

    def leave_one_out(self) -> Tensor:
        """Squared error of each sample under a fit without it, summed over samples: one number per penalty."""
        ridge, n, centred, projected = self.ridge, len(self.centred), self.centred, self.projected
        outside = centred.new_zeros(n)
        if (
            projected.shape[1] > projected.shape[0]
        ):  # fitted values are in a space of few dimensions: errors outside stay
            frame = torch.linalg.qr(projected.mT).Q
            outside = centred.square().sum(1)
            centred, projected = centred @ frame, projected @ frame
            outside -= centred.square().sum(1)
        k = projected.shape[1]
        together = max(1, _COLUMNS // k)
        squares = ridge.left * ridge.right
        sums = []
        for first in range(0, len(LAMBDAS), together):
            penalties = ridge.spectrum.new_tensor(LAMBDAS[first : first + together])
            inverse = 1 / (ridge.spectrum[:, None] + penalties)  # (r, penalties)
            kept = 1 - 1 / n - squares @ inverse / n
            filtered = inverse[:, :, None] * projected[:, None]
            errors = centred[:, None] - (ridge.right @ filtered.flatten(1)).view(n, -1, k)
            sums.append(((errors.square().sum(2) + outside[:, None]) / kept.square()).sum(0))
        return torch.cat(sums)

    def best_penalty(self) -> float:
        """The penalty with the smallest leave-one-out error."""
        return LAMBDAS[int(self.leave_one_out().argmin())]

    def _filtered(self, penalty: float) -> Tensor:
        return self.projected / (self.ridge.spectrum + penalty)[:, None]
