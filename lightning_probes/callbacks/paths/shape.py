"""The loss along a path, as results: its curves, how far it rises, and how long it stays high."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from lightning_probes.callbacks.paths.scores import Scores
from lightning_probes.functional.paths.interpolation import max_rise, plateau_fraction
from lightning_probes.metrics.mean_estimate import Estimate, estimate_mean
from lightning_probes.results import Curve, FloatArray, Scalar

_LOSS, _ACCURACY = "loss (unit of training)", "accuracy (share of targets)"


def curves_of(found: Mapping[str, Scores], positions: FloatArray, axis: str) -> Iterator[Curve]:
    """Loss and accuracy over the positions on the path, for each probe set: `loss` for the first, then `val/loss`.

    Args:
        found: The scores, by probe set.
        positions: Where on the path the points lie.
        axis: What the positions mean.
    """
    first = next(iter(found))
    for split, scores in found.items():
        prefix = "" if split == first else f"{split}/"
        yield Curve(f"{prefix}loss", positions, scores.loss, axis, _LOSS)
        if scores.accuracy is not None:
            yield Curve(f"{prefix}accuracy", positions, scores.accuracy, axis, _ACCURACY)


def largest_rise(scores: Scores) -> Estimate:
    """The largest rise of the loss along the path; its standard error is over micro-batches, paired at the two points.

    Without a standard error if the loss of a point is not finite.
    """
    rise = max_rise(torch.as_tensor(scores.loss))
    pairs = estimate_mean(scores.batch_losses[rise.high] - scores.batch_losses[rise.low], scores.sizes)
    return Estimate(rise.value, pairs.standard_error if math.isfinite(rise.value) else None, pairs.count)


def shape_of(scores: Scores, tolerance: float) -> Iterator[Scalar]:
    """Numbers that summarise the loss along the path.

    Args:
        scores: The loss at the points of the path.
        tolerance: The largest rise that still counts as monotonic, as a share of the fall from the first point to the
            lowest one; twice its standard error if that is larger.

    Yields:
        `max_rise`; `monotonic` if the loss is finite everywhere; `plateau_fraction` if it is positive at first, too.
    """
    losses, rise = scores.loss, largest_rise(scores)
    yield Scalar("max_rise", rise.mean, rise.standard_error)
    if not np.isfinite(losses).all():
        return
    allowed = max(tolerance * (losses[0] - losses.min()), 2 * (rise.standard_error or 0.0))
    yield Scalar("monotonic", float(rise.mean <= allowed))
    if losses[0] > 0:  # a share of a loss that is not positive is meaningless
        yield Scalar("plateau_fraction", plateau_fraction(torch.as_tensor(losses)), detail=True)
