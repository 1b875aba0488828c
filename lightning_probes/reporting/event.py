"""The data that one measurement of one probe sends to the loggers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_probes.reporting.panels.base import History, Measured, Panel, Table, Trail
from lightning_probes.results import Flag

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Picture:
    """A panel together with the measurements of its probe so far. It is drawn only when the figure is needed.

    Args:
        panel: What to draw.
        name: Name of the probe, which precedes the panel's keys.
        history: The probe's history, one entry per event under full keys; `"step"` and `"epoch"` have no prefix.
        trail: The probe's curves, heatmaps and surfaces by full key, each with the step of its event, oldest first.

    Example:
        >>> from lightning_probes.reporting import Lines
        >>> history = [{"step": 0, "fisher/trace": 3.0}, {"step": 10, "fisher/trace": 2.0}]
        >>> picture = Picture(Lines("trace_over_steps", "Fisher trace", y="trace"), "fisher", history, {})
        >>> picture.key, picture.figure().data[0].y
        ('fisher/trace_over_steps', (3.0, 2.0))
    """

    panel: Panel
    name: str
    history: History
    trail: Trail

    @property
    def key(self) -> str:
        """Full key of the picture."""
        return self.panel.full_key(self._measured)

    @property
    def table_key(self) -> str:
        """Full key of the table that belongs to the picture."""
        return self.panel.table_key(self._measured)

    @property
    def is_empty(self) -> bool:
        """Whether there is no measurement that the panel could show."""
        return self.panel.is_empty(self._measured)

    def figure(self) -> go.Figure:
        """The Plotly figure, see `Panel.figure`.

        Raises:
            ValueError: If there is no measurement to show.
        """
        if self.is_empty:
            raise ValueError(f"nothing to draw for {self.key!r}: no event has measured it yet")
        return self.panel.figure(self._measured)

    def table(self) -> Table:
        """The tidy table that belongs to the picture: the names of the columns, and the rows."""
        return self.panel.table(self._measured)

    @property
    def _measured(self) -> Measured:
        return Measured(self.name, self.history, self.trail)


def pictures(panels: Iterable[Panel], name: str, history: History, trail: Trail) -> tuple[Picture, ...]:
    """The panels of a probe that have a measurement to show, as pictures.

    Example:
        >>> from lightning_probes.reporting import Lines
        >>> pictures([Lines("trace_over_steps", "Fisher trace", y="trace")], "fisher", [], {})
        ()
    """
    joined = (Picture(panel, name, history, trail) for panel in panels)
    return tuple(picture for picture in joined if not picture.is_empty)


@dataclass(frozen=True)
class Event:
    """The results of one measurement of one probe, under full keys, ready to report.

    Args:
        step: The logger's own step, so that probe and training curves share an axis.
        probe: Name of the probe.
        scalars: Finite numbers by full key (`"fisher/trace"`), flags as 0 or 1 (`"fisher/flag/nonfinite"`).
        flags: The flags newly raised with this event, under full keys.
        pictures: The pictures for loggers that show pictures. They are drawn only for such a logger.
        summary: Running extremes by full key. They go to a run's summary, never to its history.
        risen: All flags raised in the run so far, by any probe: step, probe and flag, oldest first. Each becomes a row
            of the table of flags. Empty if the table should not be logged again.
        details: The keys of scalars that only explain another one and get no panel of their own.

    Raises:
        ValueError: If a number is not finite, or a picture has the key of a scalar (one would replace the other).

    Example:
        >>> Event(step=10, probe="fisher", scalars={"fisher/trace": 13.1}).step
        10
    """

    step: int
    probe: str
    scalars: Mapping[str, float] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    pictures: Sequence[Picture] = ()
    summary: Mapping[str, float] = field(default_factory=dict)
    risen: Sequence[tuple[int, str, Flag]] = ()
    details: Collection[str] = ()

    def __post_init__(self) -> None:
        for key, value in {**self.scalars, **self.summary}.items():
            if not math.isfinite(value):
                raise ValueError(f"{key!r} is {value}: only finite numbers are reported; raise a flag for the others")
        for picture in self.pictures:
            if picture.key in self.scalars:
                raise ValueError(f"{picture.key!r} names a scalar and a picture: give the panel another key")
