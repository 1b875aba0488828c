"""What of a run's summary the runs of a sweep are compared by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Extreme:
    """A number that a probe writes to a run's summary and by which runs can be compared, in words.

    Args:
        key: Its key among those that the probe's `summarize` gives.
        title: What it is, as the beginning of a title.
        column: What it is in a few words, which stand behind the name of the probe.
        unit: Its unit.
        note: What to keep in mind when runs are compared by it, in whole sentences.
        about_lr: What the learning rate has to do with it: a clause that ends the title of a plot coloured by it.

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
