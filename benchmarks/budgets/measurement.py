"""Measurements for budgets: each in a process of its own, and what several budgets share only once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from benchmarks.cells import Row, apart, referenced, timed


class Measured(NamedTuple):
    """What was measured for a budget, and how; the lowest that it may be, where it is known how far it varies."""

    value: float
    how: str
    lowest: float | None = None


class Measurement:
    """Measures what several rows share once.

    Args:
        options: Of the command line.
        directory: Of this run.
    """

    def __init__(self, options: Any, directory: Path) -> None:
        self.options = options
        self.directory = directory
        self.scale = 0.25 if options.quick else 1.0
        self._cells: dict[tuple[Any, ...], Row] = {}

    def cell(self, task: str, model: str, tool: str = "ours", threads: int | None = None) -> Row:
        """As in the table."""
        key = (task, model, tool, threads)
        if key not in self._cells:
            self.apart(referenced, task, model, self.directory, self.scale, limits=20)
            how = (self.directory, self.options.rounds, self.scale, self.options.limit)
            self._cells[key] = self.apart(timed, task, model, tool, *how, threads=threads)
        return self._cells[key]

    def apart(
        self, function: Callable[..., Row], *arguments: Any, threads: int | None = None, limits: float = 6
    ) -> Row:
        """In a process of its own, for so many times the limit of a cell; raises what it ended with.

        More than one thread is timed by the wall: CPU time is that of all threads together.
        """
        limit, threads = limits * self.options.limit, threads or self.options.threads
        clock = self.options.clock if threads == 1 else "wall"
        found = apart(function, *arguments, limit=limit, threads=threads, clock=clock)
        if "exception" in found:
            raise RuntimeError(found["exception"])
        return found


Measure: TypeAlias = Callable[[Measurement], Measured]


def cell(task: str, model: str, tool: str = "ours", threads: int | None = None) -> Measure:
    """The ratio of a cell of the table."""

    def measure(measurement: Measurement) -> Measured:
        row = measurement.cell(task, model, tool, threads)
        how = f"{row['samples']} samples, {row['micro_batch_size']} a pass; "
        how += f"quartiles {row['ratio_low']:.3g} to {row['ratio_high']:.3g}"
        return Measured(row["ratio"], how, row["ratio_low"])

    return measure
