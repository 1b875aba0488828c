"""The numbers in a run's summary by which the runs of a sweep are compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extreme:
    """Describes a number that a probe writes to a run's summary, and by which runs can be compared.

    Args:
        key: Its key in the result of the probe's `summarize`.
        title: What it is, as the beginning of a title.
        column: What it is in a few words, which follow the name of the probe.
        unit: Its unit.
        note: What to keep in mind when comparing runs by it, in whole sentences.
        about_lr: How the learning rate affects it: the last clause of the title of a plot coloured by learning rate.

    Example:
        >>> Extreme("norm_max", "Largest gradient norm", "largest norm", "loss per weight", "It grows with depth.").key
        'norm_max'
    """

    key: str
    title: str
    column: str
    unit: str
    note: str
    about_lr: str = ""
