"""Selected features of all layers against the features of the last one, on samples that neither head has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_probes.functional.features.feature_selection import Labelled, choose_head, select_features


class AgainstLast(NamedTuple):
    """Two heads on the same samples.

    Attributes:
        accuracy: Of the head on selected features of all layers.
        last: Of the head on the last features.
        gap: Their difference.
        standard_error: Of the difference, over samples.
        kept: Share of the features that are kept.
        residual: The largest residual of all heads.
        relevance: (features,), of each feature.
    """

    accuracy: float
    last: float
    gap: float
    standard_error: float
    kept: float
    residual: float
    relevance: Tensor


def three_parts(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random places of a half, a quarter and a quarter of some samples.

    Example:
        >>> [len(part) for part in three_parts(100, torch.Generator())]
        [50, 25, 25]
    """
    order = torch.randperm(samples, generator=generator, device=generator.device)
    return order[: samples // 2], order[samples // 2 : samples * 3 // 4], order[samples * 3 // 4 :]


def against_last(
    samples: Labelled, last: Tensor, parts: Sequence[Tensor], penalty: float, fractions: Sequence[float]
) -> AgainstLast:
    """Fit both heads, choose their fraction and ridge, and score them.

    Args:
        samples: The features of all layers, and labels.
        last: (samples, features), the last ones.
        parts: Places of the samples that fit, of those that choose, and of those that are scored.
        penalty: See `select_features`.
        fractions: See `select_features`.
    """
    fit, choose, scored = (part.to(last.device) for part in parts)
    _, labels = torch.unique(samples.labels, return_inverse=True)
    classes = int(labels.max()) + 1
    everything, of_last = Labelled(samples.features, labels), Labelled(last, labels)
    selection = select_features(everything[fit], everything[choose], classes, penalty, fractions)
    chosen = choose_head(of_last[fit], of_last[choose], classes)
    hits, hits_of_last = (
        (logits.argmax(1) == labels[scored]).double()
        for logits in (selection(samples.features[scored]), chosen.head(last[scored]))
    )
    gap = hits - hits_of_last
    return AgainstLast(
        float(hits.mean()), float(hits_of_last.mean()), float(gap.mean()), float(gap.std()) / len(gap) ** 0.5,
        len(selection.kept) / samples.features.shape[1], max(selection.residual, chosen.residual), selection.relevance,
    )  # fmt: skip
