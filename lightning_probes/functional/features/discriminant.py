"""Linear discriminant analysis in a few dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_probes.functional.features.cka import centre
from lightning_probes.functional.features.ridge import Linear

_LEAST = 1e-10  # of the variance of all scores; within-class variance below it is rounding


def discriminant(scores: Tensor, labels: Tensor, classes: int) -> Linear:
    """The linear map to one value for each class, of which the largest is that of the likeliest class.

    It assumes normal scores with one covariance for all classes, and priors as in the samples (Fisher 1936). A class
    without samples is never the likeliest. Where the scores do not vary within classes, a small variance is used. It
    keeps classes apart that are perfectly separated.

    Args:
        scores: (n, k), in float64.
        labels: (n,), from 0.
        classes: Number of classes.

    Example:
        >>> scores = torch.tensor([[0.0], [0.2], [1.0], [1.2]], dtype=torch.float64)
        >>> discriminant(scores, torch.tensor([0, 0, 1, 1]), 2)(scores + 0.1).argmax(1)
        tensor([0, 0, 1, 1])
    """
    n, k = scores.shape
    centred = centre(scores)  # exactly zero where all are equal
    middle = scores[0] - centred[0]
    counts = torch.bincount(labels, minlength=classes).to(scores)
    sums = scores.new_zeros(classes, k).index_add_(0, labels, centred)
    means = sums / counts.clamp(min=1)[:, None]
    within = centred - means[labels]
    variances, directions = torch.linalg.eigh(within.mT @ within / n)
    least = (_LEAST * centred.square().sum() / n).clamp(min=torch.finfo(scores.dtype).tiny)
    weights = directions / torch.maximum(variances, least) @ (means @ directions).mT
    offset = (counts / n).log() - (means.mT * weights).sum(0) / 2
    return Linear(weights, offset - middle @ weights)
