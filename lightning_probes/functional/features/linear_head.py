"""A linear head for classes on features, with a group lasso over features that gives exact zeros.

The head minimises the mean cross-entropy plus ``lasso`` times the sum over features of the length of their weights, plus
half of ``ridge`` times the squared weights. The bias has no penalty. The minimiser is found by proximal gradient steps
over all samples, with momentum that restarts when it points uphill, and a step size that is halved when it is too large.
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
        residual: The largest violation of a condition for the minimum, over that of the weights 0 without a lasso. The
            conditions: for each feature with weights, the gradient of the loss is opposite to the one of its penalties;
            for each feature without weights it is no longer than ``lasso``.
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
    problem = _Problem(features - mean, labels, classes, ridge)
    scale = max(smallest_silencing_lasso(features, labels, classes), torch.finfo(features.dtype).tiny)
    frequencies = torch.bincount(labels, minlength=classes).to(features) / len(labels)
    bias = frequencies.clamp(min=1 / len(labels) / classes).log()
    at = _Point(features.new_zeros(features.shape[1], classes), bias)
    if start is not None:
        at = _Point(start.weights.clone(), start.bias + mean @ start.weights)
    residual, steps = math.inf, 0
    for steps, at in enumerate(_descent(problem, at, lasso), 1):  # noqa: B007
        if steps % _CHECK_EVERY == 0 or steps == _MOST_STEPS:
            residual = problem.violation(at, lasso) / scale
            if residual <= tolerance or steps == _MOST_STEPS:
                break
    return LinearHead(at.weights, at.bias - mean @ at.weights, residual, steps)


@dataclass(frozen=True)
class _Point:
    weights: Tensor
    bias: Tensor

    def __sub__(self, other: _Point) -> _Point:
        return _Point(self.weights - other.weights, self.bias - other.bias)

    def plus(self, other: _Point, factor: float) -> _Point:
        return _Point(
            torch.add(self.weights, other.weights, alpha=factor), torch.add(self.bias, other.bias, alpha=factor)
        )

    def dot(self, other: _Point) -> float:
        return float((self.weights * other.weights).sum() + (self.bias * other.bias).sum())


@dataclass(frozen=True)
class _Problem:
    """The smooth part of the objective. The features are centred, which changes the bias alone."""

    features: Tensor
    labels: Tensor
    classes: int
    ridge: float

    def at(self, point: _Point) -> tuple[float, _Point]:
        """Value and gradient."""
        logits = torch.addmm(point.bias, self.features, point.weights)
        value = cross_entropy(logits, self.labels) + self.ridge / 2 * point.weights.square().sum()
        errors = (logits.softmax(1) - one_hot(self.labels, self.classes).to(logits)) / len(logits)
        return float(value), _Point(self.features.mT @ errors + self.ridge * point.weights, errors.sum(0))

    def violation(self, point: _Point, lasso: float) -> float:
        """The largest violation of the conditions for the minimum, in units of the gradient."""
        _, gradient = self.at(point)
        lengths = point.weights.norm(dim=1, keepdim=True)
        opposite = gradient.weights + lasso * point.weights / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
        silent = (gradient.weights.norm(dim=1) - lasso).clamp(min=0)
        each = torch.where(lengths.squeeze(1) > 0, opposite.norm(dim=1), silent)
        return float(torch.cat([each, gradient.bias.norm()[None]]).max())

    def curvature(self) -> float:
        """A start for the bound of the curvature, which backtracking makes large enough."""
        direction = torch.ones_like(self.features[0])
        for _ in range(5):
            direction = self.features.mT @ (self.features @ direction) + direction * 1e-12
            direction = direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)
        largest = float((self.features @ direction).square().sum()) / max(1, len(self.features))
        return max(largest, 1.0) / 2 + self.ridge


def _shrunk(weights: Tensor, threshold: float) -> Tensor:
    """Each row shorter by the threshold, and exactly 0 if it is no longer than that."""
    if not threshold:
        return weights
    lengths = weights.norm(dim=1, keepdim=True)
    return weights * (1 - threshold / lengths.clamp(min=threshold))


def _descent(problem: _Problem, at: _Point, lasso: float) -> Iterator[_Point]:
    """Accelerated proximal gradient steps (Beck and Teboulle 2009), restarted as in O'Donoghue and Candes 2015."""
    bound, momentum, ahead = problem.curvature(), 1.0, at
    rounding = 8 * torch.finfo(problem.features.dtype).eps
    while True:
        value, slope = problem.at(ahead)
        while True:
            moved = ahead.plus(slope, -1 / bound)
            after = _Point(_shrunk(moved.weights, lasso / bound), moved.bias)
            way = after - ahead
            promised = value + slope.dot(way) + bound / 2 * way.dot(way)
            if problem.at(after)[0] <= promised + rounding * abs(value):
                break
            bound *= 2
        if way.dot(after - at) < 0:  # momentum points uphill
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after.plus(after - at, (momentum - 1) / following)
        at, momentum = after, following
        yield at
