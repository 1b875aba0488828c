"""What a number or a flag means for whoever trains the network: as data, for pages, reports and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Reading:
    """How to read one flag or one headline number, in one sentence each.

    Args:
        seen: What was seen.
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
        usual="It is rare in a healthy run; a loss that overflows, or a layer whose outputs are equal for all samples, "
        "gives such results.",
        check="Check the training loss at the same step, and the keys that the flag's message names.",
        attempt="Try a lower learning rate or gradient clipping if the loss is not finite either.",
    ),
    "flag/not_converged": Reading(
        seen="An iteration ended above its tolerance.",
        usual="It happens now and then where the largest eigenvalues lie close together, mostly at the first "
        "measurement, because later ones start from the last vector found.",
        check="Check the residual that is reported beside the number: a finite value is a lower bound.",
        attempt="Try to measure more often, so that each measurement starts nearer to the answer.",
    ),
}


def reading_of(readings: Mapping[str, Reading], key: str) -> Reading | None:
    """The reading of a relative key, such as `"trace"` or `"flag/unstable"`; None if there is none.

    Args:
        readings: Readings by key or glob. A key stands before a glob, and both stand before those of every callback.
        key: The key of a result without the callback's name.

    Example:
        >>> reading_of({}, "flag/nonfinite").seen
        'A result was infinite or not a number, and was left out.'
    """
    if key in readings:
        return readings[key]
    globs = (reading for pattern, reading in readings.items() if fnmatchcase(key, pattern))
    return next(globs, STANDING.get(key))
