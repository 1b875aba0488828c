"""Values over a plane with numeric axes, and a path in this plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_probes.reporting.panels.base import Drawing, Measured, Panel, Table, shown
from lightning_probes.reporting.panels.style import DARK, LIGHT_GREY, VIRIDIS, Numbers, axis, gaps, one_at_a_time
from lightning_probes.results import FloatArray, Surface

if TYPE_CHECKING:
    import plotly.graph_objects as go

# The colour scale contains neither of these.
PATH, CONTOUR = "#ff3b30", "#fafafa"
LEVELS = 16


@dataclass(frozen=True)
class Surfaces(Panel):
    """The `Surface` results of one key as contours, each with its path, with a slider over the events.

    All events share one colour scale and one set of levels. The last point of a path is drawn larger.

    Args:
        key: Key of the surface, and of the picture.
        title: What the picture shows.
        caption: One sentence on how to read it, drawn below the title.
        most: The largest number of events on the slider: the first, the last and evenly chosen ones between them.
        caveat: What the picture does not show. Only HTML pages and W&B reports have room for it.

    Example:
        >>> trail = {"plane/loss": [(5, Surface("loss", [0, 1], [0, 1], [[1.0, 2.0], [2.0, 3.0]]))]}
        >>> Surfaces("loss", "Loss").figure(Measured("plane", [], trail)).data[0].x
        (0.0, 1.0)
    """

    most: int = 20

    def draw(self, measured: Measured) -> Drawing:
        """The contours of each event. Only one event is visible: the latest, until the slider is moved."""
        trail = shown(self, measured, self.most, Surface)
        grids = [[gaps(row) for row in surface.values.tolist()] for _, surface in trail]
        ends = _ends([value for grid in grids for row in grid for value in row if value is not None])
        groups = [
            [_contours(surface, grid, ends), *_path(surface.path)]
            for (_, surface), grid in zip(trail, grids, strict=True)
        ]
        latest = trail[-1][1]
        x_range, y_range = ({"range": _reach([surface for _, surface in trail], k)} for k in (0, 1))
        layout = {
            "xaxis": axis(latest.x_label) | x_range,
            "yaxis": axis(latest.y_label) | y_range,
            "plot_bgcolor": LIGHT_GREY,
        }
        sliders = one_at_a_time(groups, [str(step) for step, _ in trail], below=50)
        return [trace for group in groups for trace in group], layout | sliders

    def table(self, measured: Measured) -> Table:
        """Step, x, y and value of every grid point of the latest event."""
        step, surface = shown(self, measured, self.most, Surface)[-1]
        rows: list[list[str | float | None]] = [
            [step, x, y, value]
            for y, values in zip(surface.y.tolist(), surface.values.tolist(), strict=True)
            for x, value in zip(surface.x.tolist(), gaps(values), strict=True)
        ]
        return ("step", "x", "y", "value"), rows

    def dark_colours(self, figure: go.Figure) -> Mapping[str, str]:
        """Contours and paths keep their colours, because the colour scale does too."""
        return DARK | {PATH: PATH, CONTOUR: CONTOUR}


def _contours(surface: Surface, grid: list[Numbers], ends: tuple[float, float]) -> dict[str, Any]:
    low, high = ends
    return {
        "type": "contour",
        "x": surface.x.tolist(),
        "y": surface.y.tolist(),
        "z": grid,
        "zmin": low,
        "zmax": high,
        "colorscale": [[k / (len(VIRIDIS) - 1), colour] for k, colour in enumerate(VIRIDIS)],
        "contours": {"coloring": "heatmap", "start": low, "end": high, "size": (high - low) / LEVELS},
        "line": {"color": CONTOUR, "width": 0.5},
        "connectgaps": False,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "hovertemplate": "%{x:.4g}, %{y:.4g}<br>%{z:.4g}<extra></extra>",
        "hoverongaps": False,
    }


def _path(path: FloatArray | None) -> list[dict[str, Any]]:
    """A line with its points, and a larger point at its end. Points that are not finite are gaps."""
    if path is None or not len(path):
        return []
    x, y = gaps(path[:, 0].tolist()), gaps(path[:, 1].tolist())
    points = [f"point {k} of {len(path)}" for k in range(1, len(path) + 1)]
    look = {
        "type": "scatter",
        "mode": "lines+markers",
        "line": {"color": PATH, "width": 2},
        "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        "showlegend": False,
        "cliponaxis": False,
    }
    whole = {"x": x, "y": y, "text": points, "marker": {"color": PATH, "size": 5}}
    end = {"x": x[-1:], "y": y[-1:], "text": points[-1:], "marker": {"color": PATH, "size": 11}}
    return [look | whole, look | end]


def _reach(surfaces: Sequence[Surface], coordinate: int) -> list[float]:
    """The range of an axis: it covers all grids and paths, without a margin."""
    places = [(surface.x, surface.y)[coordinate] for surface in surfaces]
    places += [surface.path[:, coordinate] for surface in surfaces if surface.path is not None]
    finite = [place for part in places for place in gaps(part.tolist()) if place is not None]
    return [min(finite), max(finite)]


def _ends(values: list[float]) -> tuple[float, float]:
    """Ends of the colour scale, which differ even if all values are equal or there are none."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return (low, high) if low < high else (low, low + (abs(low) or 1.0))
