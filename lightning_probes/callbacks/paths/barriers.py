"""How high the loss and the error rise between two ends, as results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_probes.callbacks.paths.scores import Scores
from lightning_probes.functional.paths.barrier import barrier, barrier_mean, rise_above_ends
from lightning_probes.metrics.mean_estimate import estimate_mean
from lightning_probes.results import Curve, FloatArray, Scalar

LOSS, ERROR = "loss (unit of training)", "error (share of targets)"


def curves_of(found: Mapping[str, Scores], positions: FloatArray, axis: str, prefix: str = "") -> Iterator[Curve]:
    """Loss and error over the positions on a path, for each probe set: `loss` for the first, then `val/loss`.

    Args:
        found: The scores, by probe set.
        positions: Where on the path the points lie.
        axis: What the positions mean.
        prefix: Put before each key.
    """
    for split, scores in by_prefix(found, prefix):
        yield Curve(f"{split}loss", positions, scores.loss, axis, LOSS)
        if scores.accuracy is not None:
            yield Curve(f"{split}error", positions, 1 - scores.accuracy, axis, ERROR)


def barriers_of(
    found: Mapping[str, Scores], positions: FloatArray, prefix: str = "", is_detail: bool = False
) -> Iterator[Scalar]:
    """`barrier`, `barrier_mean` and `rise_above_ends` of the loss, and of the error under `error_...`.

    Their standard errors are over micro-batches, paired: of the highest point against the ends. A curve with a point
    that is not finite has none of them.

    Args:
        found: The scores, by probe set; all but the first are details.
        positions: Where on the path the points lie, from 0 to 1.
        prefix: Put before each key.
        is_detail: Whether all of them are details. Otherwise all are but `barrier` of the first probe set's loss.
    """
    first = next(iter(found.values()))
    for split, scores in by_prefix(found, prefix):
        headline = "barrier" if scores is first and not is_detail else ""
        yield from _heights(split, scores.loss, scores.batch_losses, scores.sizes, positions, headline)
        if scores.accuracy is not None and scores.batch_correct is not None and scores.batch_targets is not None:
            counted = scores.batch_targets[0] > 0  # a micro-batch may have none
            weights = scores.batch_targets[:, counted]
            errors = 1 - scores.batch_correct[:, counted] / weights
            yield from _heights(f"{split}error_", 1 - scores.accuracy, errors, weights[0], positions)


def by_prefix(found: Mapping[str, Scores], prefix: str) -> Iterator[tuple[str, Scores]]:
    """The scores of each probe set, with what comes before its keys: a prefix, and for all but the first its name."""
    for number, (split, scores) in enumerate(found.items()):
        yield f"{prefix}{split}/" if number else prefix, scores


def _heights(
    prefix: str, curve: FloatArray, by_batch: Tensor, weights: Tensor | Sequence[float], positions: FloatArray,
    headline: str = "",
) -> Iterator[Scalar]:  # fmt: skip
    heights = {
        "barrier": barrier(torch.as_tensor(curve), torch.as_tensor(positions)),
        "barrier_mean": barrier_mean(torch.as_tensor(curve)),
        "rise_above_ends": rise_above_ends(torch.as_tensor(curve)),
    }
    for key, height in heights.items():
        error = estimate_mean(height.paired(by_batch), weights).standard_error
        yield Scalar(f"{prefix}{key}", height.value, error if math.isfinite(height.value) else None, key != headline)
