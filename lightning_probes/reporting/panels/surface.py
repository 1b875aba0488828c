"""Values over a plane with numeric axes, and a path in this plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_probes.reporting.panels.base import Drawing, Measured, Panel, Table, shown
from lightning_probes.reporting.panels.style import DARK, LIGHT_GREY, VIRIDIS, Numbers, axis, gaps, one_at_a_time
from lightning_probes.results import Surface

if TYPE_CHECKING:
    import plotly.graph_objects as go

# The colour scale contains neither of these.
PATH, CONTOUR = "#ff3b30", "#fafafa"
# Readable on every colour of the scale.
LABEL = {"color": CONTOUR, "size": 12, "shadow": "0 0 3px black, 0 0 3px black"}
LEVELS = 16
APART = 0.12  # labels of a path, as a share of the axes


@dataclass(frozen=True)
class Surfaces(Panel):
    """The `Surface` results of one key as contours, each with its path, with a slider over the events.

    All events share one colour scale and one set of levels. Of a path the last point is drawn larger, and points that
    are far enough from each other have their labels.

    Args:
        key: Key of the surface, and of the picture.
        title: What the picture shows.
        caption: One sentence on how to read it, drawn below the title.
        log: Colours and levels by the logarithm of the values, if all of them are positive.
        most: How many events to keep on the slider: the first, the last and evenly chosen ones between them.
        caveat: What the picture does not show; for pages, which have room for it.

    Example:
        >>> trail = {"plane/loss": [(5, Surface("loss", [0, 1], [0, 1], [[1.0, 2.0], [2.0, 3.0]]))]}
        >>> Surfaces("loss", "Loss").figure(Measured("plane", [], trail)).data[0].x
        (0.0, 1.0)
    """

    log: bool = False
    most: int = 20

    def draw(self, measured: Measured) -> Drawing:
        """The contours of each event. Only one event is visible: the latest, until the slider is moved."""
        trail = shown(self, measured, self.most, Surface)
        grids = [[gaps(row) for row in surface.values.tolist()] for _, surface in trail]
        values = [value for grid in grids for row in grid for value in row if value is not None]
        drawn = _logarithmic if self.log and values and min(values) > 0 else _linear
        reach = [_reach([surface for _, surface in trail], k) for k in (0, 1)]
        groups = [
            [_contours(surface) | drawn(grid, _ends(values)), *_path(surface, reach)]
            for (_, surface), grid in zip(trail, grids, strict=True)
        ]
        latest = trail[-1][1]
        layout = {
            "xaxis": axis(latest.x_label) | {"range": reach[0]},
            "yaxis": axis(latest.y_label) | {"range": reach[1]},
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

    def height(self, figure: go.Figure) -> int:
        """Higher than a curve: on a flat plot a plane would look as if it had one direction."""
        return super().height(figure) + 160

    def dark_colours(self, figure: go.Figure) -> Mapping[str, str]:
        """Contours and paths keep their colours, because the colour scale does too."""
        return DARK | {PATH: PATH, CONTOUR: CONTOUR}


def _contours(surface: Surface) -> dict[str, Any]:
    return {
        "type": "contour",
        "x": surface.x.tolist(),
        "y": surface.y.tolist(),
        "colorscale": [[k / (len(VIRIDIS) - 1), colour] for k, colour in enumerate(VIRIDIS)],
        "line": {"color": CONTOUR, "width": 0.5},
        "connectgaps": False,
        "hoverongaps": False,
    }


def _linear(grid: list[Numbers], ends: tuple[float, float]) -> dict[str, Any]:
    return _shades(grid, ends) | {"hovertemplate": "%{x:.4g}, %{y:.4g}<br>%{z:.4g}<extra></extra>"}


def _logarithmic(grid: list[Numbers], ends: tuple[float, float]) -> dict[str, Any]:
    """Colours by the logarithm; the colour bar and what is shown under the pointer have the values themselves."""
    low, high = (math.log10(end) for end in ends)
    logarithms = [[None if value is None else math.log10(value) for value in row] for row in grid]
    shades = _shades(logarithms, (low, high))
    places, values = _ticks(low, high)
    texts = [["" if value is None else f"{value:.4g}" for value in row] for row in grid]
    return shades | {
        "text": texts,
        "hovertemplate": "%{x:.4g}, %{y:.4g}<br>%{text}<extra></extra>",
        "colorbar": shades["colorbar"] | {"tickvals": places, "ticktext": values},
    }


def _shades(grid: list[Numbers], ends: tuple[float, float]) -> dict[str, Any]:
    low, high = ends
    return {
        "z": grid,
        "zmin": low,
        "zmax": high,
        "contours": {"coloring": "heatmap", "start": low, "end": high, "size": (high - low) / LEVELS},
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Places of round values on a logarithmic scale, and the values: powers of ten, and what is between as needed.

    Example:
        >>> _ticks(-1, 1)[1]
        ['0.1', '0.2', '0.5', '1', '2', '5', '10']
        >>> _ticks(math.log10(2.3016), math.log10(2.3094))[1]
        ['2.302', '2.303', '2.304', '2.305', '2.306', '2.307', '2.308', '2.309']
    """
    decades = range(math.floor(low), math.ceil(high) + 1)
    every = -(-len(decades) // 8)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [digit * 10.0**power for power in decades[::every] for digit in digits]
        found = [value for value in values if low <= math.log10(value) <= high]
        if len(found) > 3:
            return [math.log10(value) for value in found], [f"{value:.3g}" for value in found]
    return _even_ticks(10.0**low, 10.0**high)


def _even_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """The same on a scale so short that it is nearly linear: multiples of a round step."""
    power = 10.0 ** math.floor(math.log10(high - low))
    for step in (power, power / 2, power / 5):
        found = range(math.ceil(low / step), math.floor(high / step) + 1)
        if len(found) > 3:
            break
    places = math.floor(math.log10(high)) - math.floor(math.log10(step)) + 1
    values = [count * step for count in found]
    return [math.log10(value) for value in values], [f"{value:.{max(places, 3)}g}" for value in values]


def _path(surface: Surface, reach: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """A line with its points, and a larger point at its end. Points that are not finite are gaps."""
    if surface.path is None or not len(surface.path):
        return []
    x, y = (gaps(surface.path[:, k].tolist()) for k in (0, 1))
    count = len(surface.path)
    names = list(surface.path_labels) or [f"point {k} of {count}" for k in range(1, count + 1)]
    look = {
        "type": "scatter",
        "mode": "lines+markers",
        "line": {"color": PATH, "width": 2},
        "hovertemplate": "%{hovertext}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        "showlegend": False,
        "cliponaxis": False,
    }
    whole = {"x": x, "y": y, "hovertext": names, "marker": {"color": PATH, "size": 5}}
    end = {"x": x[-1:], "y": y[-1:], "hovertext": names[-1:], "marker": {"color": PATH, "size": 11}}
    if surface.path_labels:
        kept = _apart(x, y, reach)
        look |= {"mode": "lines+markers+text", "textposition": "top center", "textfont": LABEL}
        whole["text"] = [name if k in kept and k < count - 1 else "" for k, name in enumerate(names)]
        end["text"] = [name if count - 1 in kept else "" for name in names[-1:]]
    return [look | whole, look | end]


def _apart(x: Numbers, y: Numbers, reach: Sequence[Sequence[float]]) -> set[int]:
    """Points whose labels do not cover each other: the last, the first, and what is far enough from those before."""
    kept: dict[int, tuple[float, float]] = {}
    for k in (len(x) - 1, *range(len(x) - 1)):
        if (across := x[k]) is None or (up := y[k]) is None:
            continue
        place = tuple((at - low) / ((high - low) or 1.0) for at, (low, high) in zip((across, up), reach, strict=True))
        if all(abs(place[0] - a) > APART or abs(place[1] - b) > APART / 2 for a, b in kept.values()):
            kept[k] = (place[0], place[1])
    return set(kept)


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
