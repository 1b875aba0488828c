"""The largest value of a quantity until a loss has fallen to a given level."""

from __future__ import annotations

from collections.abc import Sequence


def peak_at_loss(values: Sequence[float], losses: Sequence[float], level: float | None = None) -> float | None:
    """Largest value measured until the loss first fell to a level; lets you compare runs at equal loss.

    Both quantities are interpolated linearly between the last measurement above the level and the first at or below
    it. The interpolated value at the crossing takes part in the maximum.

    Args:
        values: The quantity, in the order of measurement.
        losses: The loss at the same measurements.
        level: The loss to reach; None for half of the first loss.

    Returns:
        The peak, in the unit of `values`. The first value if the first loss is already at or below the level. None if
        the loss has not reached the level, if nothing was measured, or if `level` is None and the first loss is not
        positive.

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
