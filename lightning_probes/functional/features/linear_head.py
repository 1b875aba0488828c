"""A linear head for classes on features, with a group lasso over features that gives exact zeros.

The head minimises the mean cross-entropy plus ``lasso`` times the sum over features of the length of their weights,
plus half of ``ridge`` times the squared weights. The bias has no penalty. The minimum is approached by proximal
gradient steps over all samples, with momentum that restarts when it points uphill. A step that is too long is halved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

TOLERANCE = 1e-3
_MOST_STEPS = 3000
_CHECK_EVERY = 10


@dataclass(frozen=True)
class LinearHead:
    """Weights of a head, and how far they are from the minimum.

    Attributes:
        weights: (features, classes).
        bias: (classes,).
        residual: The largest violation of a condition for the minimum, over that of the weights 0 without a lasso;
            infinite for features that are not finite. The conditions: for each feature with weights, the gradient of
            the loss is opposite to the one of its penalties; for each feature without weights it is no longer than
            ``lasso``.
        steps: Number of proximal gradient steps.
    """

    weights: Tensor
    bias: Tensor
    residual: float
    steps: int

    @property
    def converged(self) -> bool:
        """Whether the residual is small enough."""
        return self.residual <= TOLERANCE

    @property
    def relevance(self) -> Tensor:
        """(features,): the squared length of the weights of each feature."""
        return self.weights.square().sum(1)

    def __call__(self, features: Tensor) -> Tensor:
        """Logits, (samples, classes)."""
        return torch.addmm(self.bias, features.to(self.weights), self.weights)


def smallest_silencing_lasso(features: Tensor, labels: Tensor, classes: int) -> float:
    """The smallest ``lasso`` with which all weights are 0: the length of the gradient of one feature at weights 0.

    Args:
        features: (samples, features).
        labels: (samples,), from 0.
        classes: Number of classes.
    """
    targets = one_hot(labels, classes).to(features)
    gradient = (features - features.mean(0)).mT @ (targets.mean(0) - targets) / len(features)
    return float(gradient.norm(dim=1).max()) if features.shape[1] else 0.0


def fit_head(
    features: Tensor, labels: Tensor, classes: int, lasso: float = 0.0, ridge: float = 0.0,
    start: LinearHead | None = None, tolerance: float = TOLERANCE / 2,
) -> LinearHead:  # fmt: skip
    """Fit a linear head.

    Args:
        features: (samples, features), floating-point.
        labels: (samples,), from 0.
        classes: Number of classes.
        lasso: Coefficient of the group lasso.
        ridge: Coefficient of the squared weights.
        start: Where to start; by default at weights 0.
        tolerance: The residual at which to end.

    Example:
        >>> features = torch.eye(3).repeat(20, 1)
        >>> head = fit_head(features, features.argmax(1) // 2, classes=2, lasso=0.02)
        >>> head.relevance > 0
        tensor([False, False,  True])
    """
    mean = features.mean(0)
    problem = _Problem(features - mean, labels, one_hot(labels, classes).to(features), ridge)
    scale = max(smallest_silencing_lasso(features, labels, classes), torch.finfo(features.dtype).tiny)
    if start is None:
        seen = problem.targets.mean(0).clamp(min=1 / len(labels) / classes)
        at = problem.at(features.new_zeros(features.shape[1], classes), seen.log())
    else:
        at = problem.at(start.weights, start.bias + mean @ start.weights)
    residual, steps = math.inf, 0
    for steps, point in enumerate(_descent(problem, at, lasso), 1):  # without end
        at = point
        if steps % _CHECK_EVERY == 0 or steps == _MOST_STEPS:
            violation = problem.violation(at, lasso)
            residual = math.inf if math.isnan(violation) else violation / scale
            if residual <= tolerance or steps == _MOST_STEPS or residual == math.inf:
                break
    return LinearHead(at.weights, at.bias - mean @ at.weights, residual, steps)


@dataclass(frozen=True)
class _Point:
    """Weights and bias, and the logits that they give. These are linear, so combined points need no product."""

    weights: Tensor
    bias: Tensor
    logits: Tensor

    def __sub__(self, other: _Point) -> _Point:
        return self.plus(other, -1)

    def plus(self, other: _Point, factor: float) -> _Point:
        return _Point(
            torch.add(self.weights, other.weights, alpha=factor), torch.add(self.bias, other.bias, alpha=factor),
            torch.add(self.logits, other.logits, alpha=factor),
        )  # fmt: skip


@dataclass(frozen=True)
class _Problem:
    """The smooth part of the objective. The features are centred, which changes the bias alone."""

    features: Tensor
    labels: Tensor
    targets: Tensor
    ridge: float

    def at(self, weights: Tensor, bias: Tensor) -> _Point:
        return _Point(weights, bias, torch.addmm(bias, self.features, weights))

    def value(self, point: _Point) -> float:
        return float(cross_entropy(point.logits, self.labels) + self.ridge / 2 * point.weights.square().sum())

    def gradient(self, point: _Point) -> tuple[Tensor, Tensor]:
        """For the weights, and for the bias."""
        errors = (point.logits.softmax(1) - self.targets) / len(self.targets)
        return torch.addmm(point.weights, self.features.mT, errors, beta=self.ridge), errors.sum(0)

    def violation(self, point: _Point, lasso: float) -> float:
        """The largest violation of the conditions for the minimum, in units of the gradient."""
        slopes, bias_slope = self.gradient(point)
        lengths = point.weights.norm(dim=1, keepdim=True)
        opposite = slopes + lasso * point.weights / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
        silent = (slopes.norm(dim=1) - lasso).clamp(min=0)
        each = torch.where(lengths.squeeze(1) > 0, opposite.norm(dim=1), silent)
        return float(torch.cat([each, bias_slope.norm()[None]]).max())

    def curvature(self) -> float:
        """A bound of the curvature, or little less; backtracking makes it large enough."""
        direction = torch.ones_like(self.features[0])
        for _ in range(5):
            direction = self.features.mT @ (self.features @ direction)
            direction = direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)
        largest = float((self.features @ direction).square().sum()) / len(self.features)
        return max(largest, 1.0) / 2 + self.ridge


def _shrunk(weights: Tensor, threshold: float) -> Tensor:
    """Each row shorter by the threshold, and exactly 0 if it is no longer than that."""
    return weights * (1 - threshold / weights.norm(dim=1, keepdim=True)).clamp(min=0) if threshold else weights


def _descent(problem: _Problem, at: _Point, lasso: float) -> Iterator[_Point]:
    """Accelerated proximal gradient steps (Beck and Teboulle 2009), restarted as in O'Donoghue and Candes 2015."""
    bound, momentum, ahead = problem.curvature(), 1.0, at
    rounding = 8 * torch.finfo(problem.features.dtype).eps
    while True:
        value, (slopes, bias_slope) = problem.value(ahead), problem.gradient(ahead)
        while True:
            after = problem.at(_shrunk(ahead.weights - slopes / bound, lasso / bound), ahead.bias - bias_slope / bound)
            way, bias_way = after.weights - ahead.weights, after.bias - ahead.bias
            along = (slopes * way).sum() + (bias_slope * bias_way).sum()
            promised = value + along + bound / 2 * (way.square().sum() + bias_way.square().sum())
            if not problem.value(after) > float(promised) + rounding * abs(value):
                break
            bound *= 2
        uphill = (way * (after.weights - at.weights)).sum() + (bias_way * (after.bias - at.bias)).sum() < 0
        momentum = 1.0 if uphill else momentum
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after.plus(after - at, (momentum - 1) / following)
        at, momentum = after, following
        yield at
