"""What the probes of one Trainer have in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.run.init_state import StateDict
from lightning_probes.reporting import worth_redrawing
from lightning_probes.results import Flag

# A probe is anything with a `name` here, for the base class is made of these functions.
Siblings = Sequence[Any]


def check_names(probes: Siblings) -> None:
    """Each has a name of its own.

    Raises:
        MisconfigurationException: If two share one; names the argument.
    """
    names = [probe.name for probe in probes]
    for name in names:
        if names.count(name) > 1:
            raise MisconfigurationException(f"two probes are called {name!r}: give one of them another name=")


def captured(probes: Siblings) -> StateDict | None:
    """The initialisation that one of them has captured in this fit; one copy of it serves all."""
    states = (probe._log.initial for probe in probes if probe._fit.started and probe.init_state is None)
    return next((state for state in states if state is not None), None)


def risen(probes: Siblings) -> list[tuple[int, str, Flag]]:
    """The flags that have risen so far: step, name of the probe, and flag, oldest first."""
    rows = [(step, probe.name, flag) for probe in probes for step, flag in probe._log.record.risen]
    return sorted(rows, key=lambda row: row[0])


def flag_table(probes: Siblings, new: int) -> list[tuple[int, str, Flag]]:
    """The flags that have risen so far, if their table should be logged again for `new` more of them; else nothing.

    A table is logged whole, so that to log it at every rise would cost the square of their number.
    """
    count = sum(len(probe._log.record.risen) for probe in probes)
    return risen(probes) if any(map(worth_redrawing, range(count - new + 1, count + 1))) else []


def share_of_time(probes: Siblings) -> float:
    """Share of the fit's time that they have taken so far; over a quarter is said once, after a minute."""
    elapsed = time.perf_counter() - min(probe._fit.start for probe in probes if probe._fit.started)
    share: float = sum(probe.seconds for probe in probes) / elapsed
    if share > 1 / 4 and elapsed > 60:
        probes[0].say.info("probes take over a quarter of the fit: set schedule= or num_samples= to measure less")
    return share
