"""What a number or a flag means for the user: as data, for pages, reports and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Reading:
    """How to read one flag or one headline number, in one sentence each.

    Args:
        seen: What the number or flag says.
        usual: Whether that is usual, and on what evidence.
        check: What to check before acting on it.
        attempt: What to try.

    Example:
        >>> reading = Reading(
        ...     seen="The gradient noise scale is the batch size beyond which larger batches stop paying.",
        ...     usual="It usually grows while the loss falls (McCandlish et al. 2018).",
        ...     check="Check its trend over steps, because one value has a large error.",
        ...     attempt="Try a batch of about this size.",
        ... )
        >>> reading.attempt
        'Try a batch of about this size.'
    """

    seen: str
    usual: str
    check: str
    attempt: str


# The flags that every callback has.
STANDING: Mapping[str, Reading] = {
    "flag/nonfinite": Reading(
        seen="A result was infinite or not a number, and was left out.",
        usual="This is rare in a healthy run. A loss that overflows gives such results, and so does a layer whose "
        "outputs are equal for all samples.",
        check="Check the training loss at the same step, and the keys in the flag's message.",
        attempt="Try a lower learning rate or gradient clipping if the loss is not finite either.",
    ),
    "flag/not_converged": Reading(
        seen="An iterative method stopped before it reached its tolerance.",
        usual="This happens now and then when the largest eigenvalues are close together. It happens mostly at the "
        "first measurement, because later ones start from the last vector found.",
        check="Check the residual that is reported beside the number. A finite value is a lower bound.",
        attempt="Try measuring more often, so that each measurement starts closer to the result.",
    ),
}


def reading_of(readings: Mapping[str, Reading], key: str) -> Reading | None:
    """The reading of a relative key, such as `"trace"` or `"flag/unstable"`; None if there is none.

    Args:
        readings: Readings by key or glob. An exact key takes precedence over a glob, and both over `STANDING`.
        key: The key of a result without the callback's name.

    Example:
        >>> reading_of({}, "flag/nonfinite").seen
        'A result was infinite or not a number, and was left out.'
    """
    if key in readings:
        return readings[key]
    globs = (reading for pattern, reading in readings.items() if fnmatchcase(key, pattern))
    return next(globs, STANDING.get(key))
