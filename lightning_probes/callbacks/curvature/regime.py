"""The rule that tells the regimes of training apart, from losses and curvatures at some steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

_RISES = 1.05  # of the first loss: what counts as the rise of a catapult
_RISES_UNTIL = 30  # steps
_LANDS_BELOW = 0.9  # of the first curvature
_STABLE = 1.1  # the largest ratio at which a catapult has landed
_EDGE = (0.85, 1.2)  # ratios near the edge of stability
_EDGE_EVENTS = 3
_LAZY_FACTOR = 3.0  # by which curvature may change in lazy training
_DIVERGES = 10.0  # of the first loss
_DIVERGES_AFTER = 30  # steps


class Regime(IntEnum):
    """How training moves, as `regime` reports it."""

    UNSETTLED = -1
    LAZY = 0
    CATAPULT = 1
    EDGE = 2
    DIVERGENT = 3


@dataclass(frozen=True)
class Seen:
    """What was seen at one step.

    Attributes:
        step: The step.
        loss: The loss; not finite if it was not.
        curvature: The largest eigenvalue of the Hessian, None if unknown.
        ratio: It over the stability threshold, None if unknown.
        regime: The regime that was reported, None at the present step.
    """

    step: float
    loss: float
    curvature: float | None = None
    ratio: float | None = None
    regime: float | None = None


def seen_before(history: Sequence[Mapping[str, float]], name: str) -> list[Seen]:
    """The measurements of a probe, oldest first, with its name as the prefix of their keys."""
    return [
        Seen(
            step=entry["step"],
            loss=entry.get(f"{name}/loss", math.nan),
            curvature=entry.get(f"{name}/lambda_max"),
            ratio=entry.get(f"{name}/stability_ratio"),
            regime=entry.get(f"{name}/regime"),
        )
        for entry in history
    ]


def regime_of(seen: Sequence[Seen]) -> Regime:
    """The regime at the last of the measurements.

    Args:
        seen: All measurements of a run, oldest first.

    Example:
        >>> healthy = [Seen(0, 1.0, 40.0, 1.5), Seen(2, 2.4, 70.0, 1.2), Seen(50, 0.3, 20.0, 0.7)]
        >>> regime_of(healthy[:2]).name, regime_of(healthy).name
        ('UNSETTLED', 'CATAPULT')
    """
    if is_divergent(seen):
        return Regime.DIVERGENT
    if any(each.regime == Regime.CATAPULT for each in seen) or _has_landed(seen):
        return Regime.CATAPULT
    ratios = [each.ratio for each in seen if each.ratio is not None]
    if len(ratios) >= _EDGE_EVENTS and _EDGE[0] <= statistics.median(ratios[-_EDGE_EVENTS:]) <= _EDGE[1]:
        return Regime.EDGE
    if len(ratios) >= _EDGE_EVENTS and max(ratios) < _EDGE[0] and _curvature_stays(seen):
        return Regime.LAZY
    return Regime.UNSETTLED


def is_divergent(seen: Sequence[Seen]) -> bool:
    """Whether a loss is not finite, or all losses have been far above the first one over a doubling of steps.

    The second is revoked if the loss falls again, because a catapult may be high for a while.
    """
    if not all(math.isfinite(each.loss) for each in seen):
        return True
    first, now = seen[0], seen[-1]
    recent = [each for each in seen if 2 * each.step >= now.step]
    doubled = now.step >= 2 * _DIVERGES_AFTER and len(recent) > 1
    return doubled and first.loss > 0 and min(each.loss for each in recent) > _DIVERGES * first.loss


def _has_landed(seen: Sequence[Seen]) -> bool:
    """Whether the loss rose early from above the stability threshold, and is now low in a flatter place."""
    first, now = seen[0], seen[-1]
    if first.ratio is None or now.ratio is None or first.curvature is None or now.curvature is None:
        return False
    peak = max(each.loss for each in seen if each.step <= _RISES_UNTIL or each is first)
    rose = first.ratio > 1 and peak > _RISES * first.loss
    return rose and now.loss < first.loss and now.curvature < _LANDS_BELOW * first.curvature and now.ratio <= _STABLE


def _curvature_stays(seen: Sequence[Seen]) -> bool:
    first = seen[0].curvature
    if first is None or first <= 0:
        return False
    known = [each.curvature for each in seen if each.curvature is not None]
    return first / _LAZY_FACTOR <= min(known) and max(known) <= first * _LAZY_FACTOR
