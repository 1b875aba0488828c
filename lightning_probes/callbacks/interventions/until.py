"""The step from which on an intervention does nothing: a number of steps, or a share of the fit."""

from __future__ import annotations

import math
from numbers import Integral, Real

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.values import check_whole_number, refuse


def check_until(until: object) -> None:
    """Check that `until` is a whole number of steps, a share of the fit, or None.

    Raises:
        ValueError: If it is not.
    """
    if not _is_share(until):
        try:
            check_whole_number("until", until, least=1, optional=True)
        except ValueError:
            wanted = "a whole number of steps of at least 1, a share of the fit above 0 and at most 1,"
            refuse("until", wanted, until, optional=True)


def end_of(until: float | None, planned_steps: float) -> float:
    """The step that `until` means in a fit of so many steps.

    Raises:
        MisconfigurationException: If it is a share of a fit without an end.

    Example:
        >>> end_of(0.3, 1000), end_of(20, 1000), end_of(None, 1000)
        (300.0, 20.0, inf)
    """
    if until is None:
        return math.inf
    if not _is_share(until):
        return float(until)
    if math.isinf(planned_steps):
        raise MisconfigurationException(
            f"until={until} is a share of a fit whose length is not known: pass until= as a whole number of steps, or "
            "set Trainer(max_steps=...)"
        )
    return float(until) * planned_steps


def _is_share(until: object) -> bool:
    return isinstance(until, Real) and not isinstance(until, Integral) and 0 < float(until) <= 1
