"""The largest value of a quantity up to where a loss has fallen to a level."""

from __future__ import annotations

from collections.abc import Sequence


def peak_at_loss(values: Sequence[float], losses: Sequence[float], level: float | None = None) -> float | None:
    """Largest value measured until the loss first fell to a level, so that runs are compared at equal loss.

    Between the last measurement above the level and the first at or below it both quantities are taken as linear, so
    that the value at the crossing takes part in the maximum.

    Args:
        values: The quantity, in the order of measurement.
        losses: The loss at the same measurements.
        level: The loss to reach; None takes half of the first one.

    Returns:
        The peak, of the unit of `values`; the first value where the first loss is already at the level; None where the
        loss has not fallen so far, nothing was measured, or half of a first loss that is not positive was asked for.

    Example:
        >>> peak_at_loss([1.0, 3.0, 7.0], [2.0, 1.5, 0.5], level=1.0)
        5.0
    """
    if not losses or (level is None and losses[0] <= 0):
        return None
    level = losses[0] / 2 if level is None else level
    for k, loss in enumerate(losses):
        if loss <= level:
            if k == 0:
                return values[0]
            share = (losses[k - 1] - level) / (losses[k - 1] - loss)
            return max(*values[:k], values[k - 1] + share * (values[k] - values[k - 1]))
    return None
