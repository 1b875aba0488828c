"""Keeping the features that matter for some classes, chosen on samples that the head has not seen (Head2Toe)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_probes.functional.features.linear_head import LinearHead, fit_head, smallest_silencing_lasso

FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0)
RIDGES = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Labelled:
    """Samples with labels.

    Attributes:
        features: (samples, features), floating-point.
        labels: (samples,), from 0.
    """

    features: Tensor
    labels: Tensor

    def __getitem__(self, samples: Tensor) -> Labelled:
        """Some of the samples."""
        return Labelled(self.features[samples], self.labels[samples])

    def of(self, kept: Tensor) -> Labelled:
        """Some of the features."""
        return Labelled(self.features[:, kept], self.labels)


@dataclass(frozen=True)
class ChosenHead:
    """The best of some heads on held-out samples.

    Attributes:
        head: The head.
        ridge: Its coefficient of the squared weights.
        accuracy: On the held-out samples. It is the largest of several, so a little too large.
        loss: Its cross-entropy there.
        residual: The largest residual of all heads that were compared.
    """

    head: LinearHead
    ridge: float
    accuracy: float
    loss: float
    residual: float


@dataclass(frozen=True)
class Selection:
    """Features that were kept, and the head on them.

    Attributes:
        kept: Places of the kept features, in ascending order.
        chosen: The head on these.
        relevance: (features,): squared length of the weights of each feature under the group lasso; 0 for most.
        fraction: The share of the features that was asked for.
        residual: The largest residual of all heads that were fitted.
    """

    kept: Tensor
    chosen: ChosenHead
    relevance: Tensor
    fraction: float
    residual: float

    def __call__(self, features: Tensor) -> Tensor:
        """Logits from all features, (samples, classes)."""
        return self.chosen.head(features[:, self.kept])


def unit_rows(rows: Tensor) -> Tensor:
    """Each row with length 1; rows of zeros stay 0.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    largest = rows.abs().amax(1, keepdim=True) if rows.shape[1] else rows  # squares of long rows would overflow
    scaled = rows / torch.where(largest > 0, largest, 1)
    lengths = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(lengths > 0, lengths, 1)


def choose_head(fitted: Labelled, held_out: Labelled, classes: int) -> ChosenHead:
    """The head with the ridge that predicts most of the held-out labels; of equal ones that with the lowest loss."""
    found: list[ChosenHead] = []
    head, worst = None, 0.0
    for ridge in RIDGES:  # each starts where the one before has ended
        head = fit_head(fitted.features, fitted.labels, classes, ridge=ridge, start=head)
        logits = head(held_out.features)
        hits = (logits.argmax(1) == held_out.labels).double().mean()
        worst = max(worst, head.residual)
        found.append(ChosenHead(head, ridge, float(hits), float(cross_entropy(logits, held_out.labels)), worst))
    best = max(found, key=lambda chosen: (chosen.accuracy, -chosen.loss))
    return ChosenHead(best.head, best.ridge, best.accuracy, best.loss, worst)


def select_features(
    fitted: Labelled, held_out: Labelled, classes: int, penalty: float, fractions: Sequence[float] = FRACTIONS
) -> Selection:
    """Keep the most relevant features, and fit a head on these.

    A head with a group lasso tells the relevance of each feature. For each fraction, a head without lasso is fitted on
    that share of the features. A fraction below 1 never keeps a feature whose relevance is 0.

    Args:
        fitted: The samples that heads are fitted on.
        held_out: The samples on which the fraction and the ridge are chosen.
        classes: Number of classes.
        penalty: The group lasso, as a share of the smallest one that makes all weights 0; at least 0, below 1.
        fractions: Shares of the features to try, above 0 and at most 1.

    Example:
        >>> features = torch.eye(4).repeat(20, 1)
        >>> samples = Labelled(features, (features[:, 2] > 0).long())
        >>> select_features(samples, samples, 2, penalty=0.5, fractions=(0.25,)).kept
        tensor([2])
    """
    lasso = penalty * smallest_silencing_lasso(fitted.features, fitted.labels, classes)
    sparse = fit_head(fitted.features, fitted.labels, classes, lasso=lasso)
    order = sparse.relevance.argsort(descending=True, stable=True)
    relevant = int((sparse.relevance > 0).sum())
    tried: dict[int, tuple[float, Tensor, ChosenHead]] = {}
    for fraction in sorted(fractions):
        number = kept_of(len(order), relevant, fraction)
        if number not in tried:
            kept = order[:number].sort().values
            tried[number] = fraction, kept, choose_head(fitted.of(kept), held_out.of(kept), classes)
    best = max(tried.values(), key=lambda each: (each[2].accuracy, -each[2].loss))
    worst = max(sparse.residual, *(chosen.residual for _, _, chosen in tried.values()))
    return Selection(best[1], best[2], sparse.relevance, best[0], worst)


def kept_of(features: int, relevant: int, fraction: float) -> int:
    """Number of features to keep: all for the fraction 1, and no irrelevant ones for a smaller one.

    Example:
        >>> kept_of(1000, 50, 0.03), kept_of(1000, 50, 0.1), kept_of(1000, 50, 1.0)
        (30, 50, 1000)
    """
    return features if fraction == 1 else min(max(1, round(fraction * features)), relevant)
