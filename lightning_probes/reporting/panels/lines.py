"""A line with its error band: a scalar over training time, or over another scalar."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from lightning_probes.reporting.panels.base import TIME_KEYS, Drawing, Measured, Panel, ScalarPlot, Table
from lightning_probes.reporting.panels.style import BLUE, GREEN, VERMILLION, Numbers, axis, band, gaps, reference

_COLOURS = (BLUE, VERMILLION, GREEN)


@dataclass(frozen=True)
class Lines(Panel):
    """A scalar over training time, or over another scalar, with a band of ±2 standard errors if it has them.

    The standard error is the history's `<y>_se`. If x is another scalar, it is drawn as error bars instead of a band,
    because the other scalar may go up and down.

    Args:
        key: Name of the picture.
        title: What the picture shows.
        caption: One sentence on how to read it, drawn below the title.
        y: Key of the scalar.
        x: `"step"`, `"epoch"` or the key of another scalar.
        x_label: Axis title with its unit; by default the key.
        y_label: Axis title with its unit; by default the key.
        reference: A horizontal line, as `(value, label)`.
        together: Pairs of a scalar's key and its name in a legend: for `y`, and for up to two more in the same axes.
        log_x: Whether the x-axis is logarithmic. For training time it then shows step + 1, because log 0 is undefined.
        log_y: Whether the y-axis is logarithmic.
        caveat: What the picture does not show. Only HTML pages and W&B reports have room for it.

    Example:
        >>> Lines("ratio_over_steps", "Stability", "above 1 is unstable", y="ratio", reference=(1.0, "edge")).x
        'step'
    """

    y: str = field(kw_only=True)
    x: str = "step"
    x_label: str | None = None
    y_label: str | None = None
    reference: tuple[float, str] | None = None
    together: tuple[tuple[str, str], ...] = ()
    log_x: bool = False
    log_y: bool = False

    def is_empty(self, measured: Measured) -> bool:
        """Whether the scalar was never measured."""
        return not any(f"{measured.name}/{self.y}" in entry for entry in measured.history)

    def draw(self, measured: Measured) -> Drawing:
        """Each line with its band or error bars, and the reference line."""
        keys = [self.y, *(key for key, _ in self.together if key != self.y)]
        data = [
            trace
            for key, colour in zip(keys, _COLOURS, strict=False)
            if key == self.y or any(f"{measured.name}/{key}" in entry for entry in measured.history)
            for trace in self._line(measured, key, colour)
        ]
        x_key, y_key = (key if key in TIME_KEYS else f"{measured.name}/{key}" for key in (self.x, self.y))
        layout: dict[str, Any] = {
            "xaxis": axis((self.x_label or x_key) + " + 1" * self._shift, self.log_x),
            "yaxis": axis(self.y_label or y_key, self.log_y),
        }
        return data, layout if self.reference is None else layout | reference(*self.reference, self.log_y)

    @property
    def _shift(self) -> int:
        """A log axis can't show step 0, so it shows step + 1, and its title says so."""
        return int(self.log_x and self.x in TIME_KEYS)

    def _line(self, measured: Measured, key: str, colour: str) -> list[dict[str, Any]]:
        over_time = self.x in TIME_KEYS
        x_key, y_key = self.x if over_time else f"{measured.name}/{self.x}", f"{measured.name}/{key}"
        x = gaps(entry[x_key] + self._shift if x_key in entry else None for entry in measured.history)
        y = gaps(entry.get(y_key) for entry in measured.history)
        error = gaps(entry.get(f"{y_key}_se") for entry in measured.history)
        line: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines+markers",
            "x": x,
            "y": y,
            "name": dict(self.together).get(key, key),
            "line": {"color": colour, "width": 2},
            "marker": {"color": colour, "size": 5},
            "text": [f"step {int(entry['step'])}" for entry in measured.history],
            "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
            "showlegend": bool(self.together),
        }
        if all(value is None for value in error):
            return [line]
        if over_time:
            return [band(x, y, error, colour, _floor(y) if self.log_y else -math.inf), line]
        # A band would cross itself, because x may go up and down.
        line["error_y"] = {"type": "data", "array": [2 * (e or 0.0) for e in error], "color": colour, "thickness": 1}
        return [line]

    def table_key(self, measured: Measured) -> str:
        """All lines of a probe share one table."""
        return f"{measured.name}/events"

    def table(self, measured: Measured) -> Table:
        """One row per event: step, epoch and the numbers that the probe has measured.

        It leaves out the probe's seconds, and flags and numbers per layer, whose keys have another "/".

        Example:
            >>> history = [{"step": 0, "epoch": 0, "fisher/trace": 3.0}]
            >>> Lines("trace_over_steps", "Trace", y="trace").table(Measured("fisher", history, {}))
            (['step', 'epoch', 'trace'], [[0, 0, 3.0]])
        """
        prefix = f"{measured.name}/"
        keys = dict.fromkeys(key for entry in measured.history for key in entry if key.startswith(prefix))
        columns = [name for key in keys if "/" not in (name := key.removeprefix(prefix)) and name != "seconds"]
        wanted = [*TIME_KEYS, *(prefix + name for name in columns)]
        return [*TIME_KEYS, *columns], [[entry.get(key) for key in wanted] for entry in measured.history]

    def scalar_plot(self) -> ScalarPlot:
        """The scalar, so that one plot can compare all runs."""
        over_time = self.x in TIME_KEYS
        x_title = self.x_label or ("training steps" if over_time else self.x)
        return ScalarPlot(
            None if over_time else self.x, self.y, x_title, self.y_label or self.y, self.log_x, self.log_y
        )

    def title_with_unit(self) -> str:
        """The title and the label of the y-axis."""
        return f"{self.title}: {self.y_label}" if self.y_label else self.title


def _floor(y: Numbers) -> float:
    """The lower end of a band that reaches zero on a log axis: a tenth of the smallest positive value."""
    return min((value for value in y if value is not None and value > 0), default=1.0) / 10
