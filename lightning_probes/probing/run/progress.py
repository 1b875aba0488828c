"""The state of a callback in one run, and figures over all callbacks of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.processes import Processes
from lightning_probes.probing.run.init_state import StateDict
from lightning_probes.probing.run.log import RunLog
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.reporting import worth_redrawing
from lightning_probes.results import Flag


class Progress:
    """The state of one callback in one run: its measurements, and its part in the present fit.

    Args:
        name: The callback's name.
        log: Its measurements, the time of the next one, and the run's initialisation.
        say: Reports messages under its name.

    Attributes:
        started: Whether the first batch has come.
        failed: Whether the callback has stopped measuring because of an error.
        undrawn: Whether there is a measurement that no logged picture shows yet.
        flags_unlogged: Whether a flag was raised that the logged table of flags does not show yet.
        start: The time of the first batch, by `time.perf_counter`.
        seconds: The time spent measuring and reporting.
        processes: The processes that share a measurement.
        settings: The callback's entry in the run's config.
        captured: The initialisation, if this fit began there and the callback has copied it.
    """

    def __init__(self, name: str, log: RunLog, say: Speaker) -> None:
        self.name = name
        self.log = log
        self.say = say
        self.started = self.failed = self.undrawn = self.flags_unlogged = False
        self.start = self.seconds = 0.0
        self.processes = Processes()
        self.settings: dict[str, Any] = {}
        self.captured: StateDict | None = None

    def begin(self, processes: Processes) -> None:
        """Note that the first batch has come. The callback counts as failed until its checks have passed."""
        self.started = self.failed = True
        self.start = time.perf_counter()
        self.processes = processes


def check_names(names: Sequence[str]) -> None:
    """Check that each callback of a run has a name of its own.

    Raises:
        MisconfigurationException: If two have the same name.
    """
    for name in names:
        if names.count(name) > 1:
            raise MisconfigurationException(f"two probes are called {name!r}: give one of them another name=")


def captured(siblings: Sequence[Progress]) -> StateDict | None:
    """The initialisation that one of the callbacks has copied in this fit, so that all can share one copy."""
    return next((each.captured for each in siblings if each.started and each.captured is not None), None)


def risen(siblings: Sequence[Progress]) -> list[tuple[int, str, Flag]]:
    """The flags raised so far, oldest first: step, name of the callback, and flag."""
    rows = [(step, each.name, flag) for each in siblings for step, flag in each.log.record.risen]
    return sorted(rows, key=lambda row: row[0])


def flag_table(siblings: Sequence[Progress], new: int) -> list[tuple[int, str, Flag]]:
    """The flags raised so far, if the table with `new` more of them should be logged now; otherwise an empty list.

    Each time the whole table is logged. Logging it for every new flag would cost the square of their number.
    """
    count = sum(len(each.log.record.risen) for each in siblings)
    return risen(siblings) if any(map(worth_redrawing, range(count - new + 1, count + 1))) else []


def share_of_time(siblings: Sequence[Progress]) -> float:
    """The share of the fit's time that these callbacks have taken so far.

    After the first minute, a share above a quarter is reported once.
    """
    elapsed = time.perf_counter() - min(each.start for each in siblings if each.started)
    share: float = sum(each.seconds for each in siblings) / elapsed
    if share > 1 / 4 and elapsed > 60:
        siblings[0].say.info(
            "probes take more than a quarter of the fit's time: set schedule= or num_samples= to measure less"
        )
    return share
