"""Events as they are reported: numbers at once, pictures and tables of flags as often as they are worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_probes.probing.run.measurements import Measurements
from lightning_probes.probing.run.progress import flag_table, risen
from lightning_probes.probing.run.record import details
from lightning_probes.probing.run.run import Run
from lightning_probes.reporting import Event, log_event, worth_redrawing
from lightning_probes.results import Flag, Result


def event_of(callback: Measurements, run: Run, results: Mapping[str, Result], flags: Sequence[Flag]) -> Event:
    """The last event in `callback.history`, with pictures if they are worth redrawing.

    Args:
        callback: The callback; its `progress` notes what is not shown.
        run: The run.
        results: What was measured, by full key.
        flags: The flags that have risen.
    """
    progress, name = callback.progress, callback.name
    scalars = {key: value for key, value in callback.history[-1].items() if key not in ("step", "epoch")}
    drawn = callback.pictures() if worth_redrawing(len(callback.history)) else ()
    table = flag_table(run.siblings, len(flags))
    progress.undrawn, progress.flags_unlogged = not drawn, bool(flags) and not table
    explaining = {f"{name}/seconds", *details(results.values())}
    return Event(run.step, name, scalars, flags, drawn, callback.summary, table, explaining)


def draw_last(callback: Measurements, run: Run) -> None:
    """Log the pictures and flags of a callback that no event has shown yet."""
    progress = callback.progress
    drawn = callback.pictures() if progress.undrawn else ()
    table = risen(run.siblings) if progress.flags_unlogged else []
    if (drawn or table) and run.is_first:
        last = int(callback.history[-1]["step"])
        log_event(run.loggers, Event(last, callback.name, pictures=drawn, summary=callback.summary, risen=table))
    progress.undrawn = progress.flags_unlogged = False
