"""Curves along an axis that is not training time, one line per event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from lightning_probes.reporting.panels.base import Drawing, Measured, Panel, Table, shown
from lightning_probes.reporting.panels.style import (
    DARK,
    VIRIDIS,
    Numbers,
    axis,
    band,
    between,
    gaps,
    reference,
    slider,
)
from lightning_probes.results import Curve

if TYPE_CHECKING:
    import plotly.graph_objects as go

# From light (early) to dark (late), without yellow, which is hard to see on a white page.
EARLY_TO_LATE = VIRIDIS[7::-1]
# On a dark page the late lines are light, so that they stand out there too.
EARLY_TO_LATE_DARK = VIRIDIS[4:]
FADED = 0.15


class CurveLine(NamedTuple):
    """One line of a picture of curves: its name, the step of its event, and its curve."""

    label: str
    step: int
    curve: Curve


@dataclass(frozen=True)
class Curves(Panel):
    """The `Curve` results of one key, one line per event, coloured from light (early) to dark (late), with a slider.

    Args:
        key: Key of the curve, and of the picture.
        title: What the picture shows.
        caption: One sentence on how to read it, drawn below the title.
        band: Whether to draw a band of ±2 standard errors around each line.
        most: The largest number of events to draw: the first, the last and evenly chosen ones between them.
        start: Name of the point where all curves start. Its value is drawn as a level line in the lightest colour.
        level: Key of a scalar to draw as a dashed level line, at its latest value.
        log_y: Whether the y-axis is logarithmic.
        chord: Whether to draw the chord of each curve, the dashed line between its ends.
        caveat: What the picture does not show. Only HTML pages and W&B reports have room for it.

    Example:
        >>> trail = {"line/loss": [(5, Curve("loss", [0, 1], [2.0, 0.1]))]}
        >>> Curves("loss", "Loss").figure(Measured("line", [], trail)).data[0].name
        'step 5'
    """

    band: bool = False
    most: int = 20
    start: str | None = None
    level: str | None = None
    log_y: bool = False
    chord: bool = False

    has_lines_by_name: ClassVar[bool] = True

    def draw(self, measured: Measured) -> Drawing:
        """One line per curve, early ones first, with a slider that highlights one of them."""
        lines = self._lines(measured)
        data: list[dict[str, Any]] = []
        owners: list[int] = []  # for each trace, the index of its line
        for k, (label, _, curve) in enumerate(lines):
            x, y = gaps(curve.x.tolist()), gaps(curve.y.tolist())
            colour = between(EARLY_TO_LATE, k / (len(lines) - 1) if len(lines) > 1 else 1.0)
            if self.band and curve.standard_error is not None:
                data.append(band(x, y, gaps(curve.standard_error.tolist()), colour))
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": x,
                    "y": y,
                    "name": label,
                    "line": {"color": colour, "width": 2},
                    "hovertemplate": f"{label}<br>%{{x:.4g}}, %{{y:.4g}}<extra></extra>",
                    "showlegend": True,
                }
            )
            if self.chord and x:
                data.append(_chord(x, y, colour, label))
            owners += [k] * (len(data) - len(owners))
        latest = lines[-1].curve
        layout: dict[str, Any] = {"xaxis": axis(latest.x_label), "yaxis": axis(latest.y_label)}
        levels = gaps(entry.get(f"{measured.name}/{self.level}") for entry in measured.history)
        if levels and levels[-1] is not None:
            layout |= reference(levels[-1], str(self.level), self.log_y)
        if self.log_y:
            layout["yaxis"] |= {"type": "log"}
        if len(lines) > 1:
            # The last position of the slider shows all lines equally; the others highlight one line.
            full = [trace.get("opacity", 1.0) for trace in data]
            choices = [
                (name, {"opacity": [o if owner == k else o * FADED for o, owner in zip(full, owners, strict=True)]})
                for k, name in enumerate(line.label.removeprefix("step ") for line in lines)
            ]
            layout["sliders"] = [slider("step: ", [*choices, ("all", {"opacity": full})], below=50)]
        return data, layout

    def table(self, measured: Measured) -> Table:
        """Step, position and value of every point, and the name of its line.

        The columns of position and value are named after the curve's axes, or "x" and "y" if two names would be equal.
        """
        lines = self._lines(measured)
        curve, width = lines[-1].curve, len(str(lines[-1].step))
        rows: list[list[str | float | None]] = []
        for label, step, each in lines:
            # Aligned, because a chart sorts its lines by name.
            name = label.replace(f"step {step}", f"step {step:>{width}}")
            rows += [[step, *point, name] for point in zip(gaps(each.x), gaps(each.y), strict=True)]
        columns = ("step", _without_unit(curve.x_label), _without_unit(curve.y_label), "line")
        return columns if len(set(columns)) == len(columns) else ("step", "x", "y", "line"), rows

    def dark_colours(self, figure: go.Figure) -> Mapping[str, str]:
        """Later lines are lighter on a dark page, and darker on a white one."""
        lines = list(dict.fromkeys(trace.line.color for trace in figure.data))
        last = max(len(lines) - 1, 1)
        return DARK | {c: between(EARLY_TO_LATE_DARK, k / last if len(lines) > 1 else 1.0) for k, c in enumerate(lines)}

    def _lines(self, measured: Measured) -> list[CurveLine]:
        """The lines of the picture, early ones first, after a level line for the common start."""
        curves = shown(self, measured, self.most, Curve)
        lines = [CurveLine(f"step {step}", step, curve) for step, curve in curves]
        if self.start is None:
            return lines
        first = curves[0][1]
        level = replace(first, y=np.full_like(first.y, first.y[0]), standard_error=None)
        return [CurveLine(self.start, 0, level), *lines]


def _chord(x: Numbers, y: Numbers, colour: str, label: str) -> dict[str, Any]:
    """The straight line between the ends of a curve."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x[0], x[-1]],
        "y": [y[0], y[-1]],
        "name": f"chord of {label}",
        "line": {"color": colour, "width": 1, "dash": "dash"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _without_unit(label: str) -> str:
    """The label of an axis without its unit.

    Example:
        >>> _without_unit("loss (nats)")
        'loss'
    """
    return label.partition(" (")[0]
