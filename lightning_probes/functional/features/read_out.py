"""What a linear classifier or regression reads off features, on samples that it has not seen.

The samples are in folds. For each fold, a ridge regression is fitted on all others, with the penalty that has the
smallest leave-one-out error there. It is scored on the fold. So nothing that fits or chooses sees what is scored.

For classes the targets are one-hot, and a discriminant analysis of the fitted values decides. The largest value itself
would not do: least squares masks classes where features are skewed, as behind a ReLU.

With leave-one-out values instead of fitted ones, the discriminant analysis could tell the label of a sample from its
effect on the mean of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_probes.functional.features.cka import centre
from lightning_probes.functional.features.discriminant import discriminant
from lightning_probes.functional.features.ridge import Ridge

FOLDS = 5
FEWEST = 2 * FOLDS  # samples


def folds_of(order: Tensor) -> Tensor:
    """The fold of each of n samples, of equal sizes up to one, from a random order of them.

    Example:
        >>> folds_of(torch.arange(11))
        tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0])
    """
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device) % FOLDS)


def read_classes(
    features: Tensor, labels: Tensor, classes: int, folds: Tensor, orders: Sequence[Tensor] = ()
) -> Tensor:
    """Accuracy of a linear classifier on features, its standard error, and its accuracy for permuted labels.

    Args:
        features: (n, d), in float64.
        labels: (n,), from 0.
        classes: Number of classes.
        folds: (n,), see `folds_of`.
        orders: Permutations of the labels. Their classifiers have the penalties of the classifier for the true labels.

    Returns:
        (2 + orders,), in float64: the accuracy, its binomial standard error, and an accuracy for each order. NaN if a
        feature is not finite, or if there are less than `FEWEST` samples.

    Example:
        >>> labels = torch.arange(100) % 2
        >>> features = torch.stack([torch.arange(100).sin(), 3.0 * labels], 1).double()
        >>> read_classes(features, labels, 2, folds_of(torch.arange(100)))
        tensor([1., 0.], dtype=torch.float64)
    """
    n = len(features)
    if not _readable(features):
        return features.new_full((2 + len(orders),), torch.nan)
    features, versions = centre(features), torch.stack([labels, *(labels[order] for order in orders)])
    hits = features.new_zeros(len(versions))
    for ridge, others, own in _folded(features, folds):
        targets = one_hot(versions[:, others], classes).to(features).transpose(0, 1)  # (n, versions, classes)
        penalty = ridge.of_targets(targets[:, 0]).best_penalty()
        of_all = ridge.of_targets(targets.flatten(1))
        fit, fitted = of_all.fit(penalty), of_all.fitted(penalty)
        parts = (torch.split(part, classes, 1) for part in (fit.weights, fitted, fit(features[own])))
        for k, (version, weights, seen, unseen) in enumerate(zip(versions, *parts, strict=True)):
            if classes > len(weights):  # the scores vary in as many directions as there are features
                frame = torch.linalg.qr(weights.mT).Q
                seen, unseen = seen @ frame, unseen @ frame
            decide = discriminant(seen, version[others], classes)
            hits[k] += (decide(unseen).argmax(1) == version[own]).sum()
    accuracy = hits / n
    error = (accuracy[0] * (1 - accuracy[0]) / n).sqrt()
    return torch.cat([accuracy[:1], error[None], accuracy[1:]])


def read_values(features: Tensor, targets: Tensor, folds: Tensor, orders: Sequence[Tensor] = ()) -> Tensor:
    """R^2 of a linear regression on features, its standard error over samples, and R^2 for permuted targets.

    R^2 is one minus the sum of squared errors over that of a prediction by the mean of the other folds. It is averaged
    over the columns of the targets, without constant ones.

    Args:
        features: (n, d), in float64.
        targets: (n, k), in float64.
        folds: See `read_classes`.
        orders: See `read_classes`.

    Returns:
        (2 + orders,), as `read_classes`.

    Example:
        >>> x = torch.arange(100).double()[:, None].sin()
        >>> round(float(read_values(x, 2 * x + 1, folds_of(torch.arange(100)))[0]), 6)
        1.0
    """
    varying = (targets != targets[:1]).any(0)
    if not _readable(features) or not varying.any():
        return features.new_full((2 + len(orders),), torch.nan)
    features, targets = centre(features), targets[:, varying]
    targets = (targets - targets.mean(0)) / targets.std(0)  # each column counts as much as another in the penalty
    versions = torch.stack([targets, *(targets[order] for order in orders)])
    errors, baseline = torch.zeros_like(versions), torch.zeros_like(versions)
    for ridge, others, own in _folded(features, folds):
        penalty = ridge.of_targets(targets[others]).best_penalty()
        for k, version in enumerate(versions):
            fit = ridge.of_targets(version[others]).fit(penalty)
            errors[k, own] = (version[own] - fit(features[own])).square()
            baseline[k, own] = (version[own] - version[others].mean(0)).square()
    return _explained(errors, baseline)


def _readable(features: Tensor) -> bool:
    return len(features) >= FEWEST and bool(features.isfinite().all())


def _folded(features: Tensor, folds: Tensor) -> Iterator[tuple[Ridge, Tensor, Tensor]]:
    """For each fold, the regressions on all others, and the places of these and of its own. Features are centred."""
    places = [(folds == fold).nonzero().squeeze(1) for fold in range(FOLDS)]
    narrow = features.shape[1] <= len(features) - len(places[0])
    moments = torch.stack([features[own].mT @ features[own] for own in places]) if narrow else None
    for fold, own in enumerate(places):
        rest = [k for k in range(FOLDS) if k != fold]
        others = torch.cat([places[k] for k in rest])
        yield Ridge.of(features[others], None if moments is None else moments[rest].sum(0)), others, own


def _explained(errors: Tensor, baseline: Tensor) -> Tensor:
    """R^2 and its standard error by the delta method, then R^2 of the other versions."""
    means = baseline.mean(1)
    each = 1 - errors.mean(1) / means  # (versions, columns)
    effects = ((errors[0] - (1 - each[0]) * baseline[0]) / means[0]).mean(1)  # of each sample on R^2
    return torch.cat([each[0].mean()[None], effects.std()[None] / len(effects) ** 0.5, each[1:].mean(1)])
