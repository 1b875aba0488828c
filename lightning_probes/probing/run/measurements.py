"""The measurements of a callback, or those of a copy of it that ran in its place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_probes.probing.declared import Declared
from lightning_probes.probing.run.progress import Progress
from lightning_probes.reporting import Panel, Picture, pictures
from lightning_probes.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


class LastRun:
    """The last run of a callback or of one of its copies.

    Some libraries copy the callbacks passed to them, so that the user's own object never runs. Therefore a copy that
    runs reports its run to the original, if both are in one process.

    Attributes:
        found: The progress of that run; None before the first run.
    """

    def __init__(self, copied_from: LastRun | None = None) -> None:
        self.found: Progress | None = None
        self._copied_from = copied_from

    def __deepcopy__(self, memo: dict[int, Any]) -> LastRun:
        return LastRun(self)

    def __reduce__(self) -> tuple[type[LastRun], tuple[()]]:
        return LastRun, ()

    def begins(self, progress: Progress) -> None:
        """Note that a run begins."""
        self.found = progress
        if self._copied_from is not None:
            self._copied_from.begins(progress)


class Measurements(Declared):
    """The attributes of a callback that users read: from its own run, or else from the last run of a copy.

    Attributes:
        progress: The state of its own run.
    """

    name: str
    panels: tuple[Panel, ...]
    progress: Progress
    _last_run: LastRun

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry per event: step, epoch and every finite scalar under its full key."""
        return self._shown.log.record.history

    @property
    def results(self) -> dict[str, Result]:
        """The latest result under each full key."""
        return self._shown.log.record.results

    @property
    def summary(self) -> dict[str, float]:
        """Running extremes under their full keys."""
        values = {f"{self.name}/{key}": value for key, value in self.summarize().items()}
        return {key: value for key, value in values.items() if math.isfinite(value)}

    @property
    def settings(self) -> dict[str, Any]:
        """The entry in the run's config: arguments, drawn samples, precision and version; empty before a fit."""
        return self._shown.settings

    @property
    def seconds(self) -> float:
        """Time spent measuring and reporting in the last fit."""
        return self._shown.seconds

    def summarize(self) -> dict[str, float]:
        """Running extremes of `history` by relative key. They go to the run's summary, never to its history."""
        return {}

    def pictures(self) -> tuple[Picture, ...]:
        """The pictures that the probe's panels draw of its measurements so far."""
        return pictures(self.panels, self.name, self.history, self._shown.log.record.trail)

    def figure(self, key: str | None = None) -> go.Figure:
        """The Plotly figure of one of the probe's panels, by default the first.

        Raises:
            KeyError: If there is no such panel, or nothing was measured for it yet.
        """
        drawn = {picture.key: picture for picture in self.pictures()}
        if not drawn or (key is not None and key not in drawn):
            raise KeyError(
                f"no picture {key or ''!r}: the probe {self.name!r} has {sorted(drawn) or 'measured nothing'}"
            )
        return drawn[next(iter(drawn)) if key is None else key].figure()

    @property
    def _shown(self) -> Progress:
        return self.progress if self.progress.log.begun else self._last_run.found or self.progress
