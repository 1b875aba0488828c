"""How far a callback has come in one run, and what the callbacks of one run have in common."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_probes.probing.run.init_state import StateDict
from lightning_probes.probing.run.log import RunLog
from lightning_probes.probing.run.processes import Processes
from lightning_probes.probing.run.speaker import Speaker
from lightning_probes.reporting import worth_redrawing
from lightning_probes.results import Flag


class Progress:
    """One callback in one run: what it has measured, and where it stands in the present fit.

    Args:
        name: The callback's name.
        log: Its measurements, when the next is due, and where the run began.
        say: Speaks for it.

    Attributes:
        started: Whether the first batch has come.
        failed: Whether it then turned out that nothing can be measured, or can be measured any more.
        undrawn: Whether something was measured that no picture shows yet.
        flags_unlogged: Whether a flag has risen that no logged table of flags shows yet.
        start: When the first batch came, by `time.perf_counter`.
        seconds: Spent measuring and reporting.
        processes: Those that share a measurement.
        settings: What the run's config records of the callback.
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
        """The first batch has come; the fit counts as failed until it is clear that it can be measured."""
        self.started = self.failed = True
        self.start = time.perf_counter()
        self.processes = processes


def check_names(names: Sequence[str]) -> None:
    """Each callback of a run has a name of its own.

    Raises:
        MisconfigurationException: If two share one; names the argument.
    """
    for name in names:
        if names.count(name) > 1:
            raise MisconfigurationException(f"two probes are called {name!r}: give one of them another name=")


def captured(siblings: Sequence[Progress]) -> StateDict | None:
    """The initialisation that one of them has captured in this fit; one copy of it serves all."""
    return next((each.captured for each in siblings if each.started and each.captured is not None), None)


def risen(siblings: Sequence[Progress]) -> list[tuple[int, str, Flag]]:
    """The flags that have risen so far: step, name of the callback, and flag, oldest first."""
    rows = [(step, each.name, flag) for each in siblings for step, flag in each.log.record.risen]
    return sorted(rows, key=lambda row: row[0])


def flag_table(siblings: Sequence[Progress], new: int) -> list[tuple[int, str, Flag]]:
    """The flags that have risen so far, if their table should be logged again for `new` more of them; else nothing.

    A table is logged whole, so that to log it at every rise would cost the square of their number.
    """
    count = sum(len(each.log.record.risen) for each in siblings)
    return risen(siblings) if any(map(worth_redrawing, range(count - new + 1, count + 1))) else []


def share_of_time(siblings: Sequence[Progress]) -> float:
    """Share of the fit's time that they have taken so far; over a quarter is said once, after a minute."""
    elapsed = time.perf_counter() - min(each.start for each in siblings if each.started)
    share: float = sum(each.seconds for each in siblings) / elapsed
    if share > 1 / 4 and elapsed > 60:
        siblings[0].say.info("probes take over a quarter of the fit: set schedule= or num_samples= to measure less")
    return share
