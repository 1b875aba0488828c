"""Heatmaps: one matrix per step with a slider, or single columns side by side over steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_probes.reporting.panels.base import Drawing, Measured, Panel, Table, shown
from lightning_probes.reporting.panels.style import LIGHT_GREY, VIRIDIS, Numbers, axis, gaps, one_at_a_time
from lightning_probes.results import Heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

BELOW_ZERO = ("#b2182b", "#fddbc7")
TICKS, TICK_LENGTH = 24, 20


@dataclass(frozen=True)
class Heatmaps(Panel):
    """The `Heatmap` results of one key, with a slider over the events.

    Args:
        key: Key of the heatmap, and of the picture.
        title: What the picture shows.
        caption: One sentence on how to read it, drawn below the title.
        limits: Ends of the colour scale. It is extended to values outside, and negative values have another hue.
        most: The largest number of events on the slider: the first, the last and evenly chosen ones between them.
        caveat: What the picture does not show. Only HTML pages and W&B reports have room for it.
    """

    limits: tuple[float, float] = (0.0, 1.0)
    most: int = 20

    def draw(self, measured: Measured) -> Drawing:
        """One heatmap per event. Only one is visible: the latest, until the slider is moved."""
        trail = shown(self, measured, self.most, Heatmap)
        matrices = [[gaps(row) for row in result.values.tolist()] for _, result in trail]
        ends = _ends(self.limits, [row for matrix in matrices for row in matrix])
        labels = [(_unique(result.row_labels), _unique(result.column_labels)) for _, result in trail]
        data = [_heatmap(values, *names, ends, "%{y}<br>%{x}") for values, names in zip(matrices, labels, strict=True)]
        layout = _layout(*labels[-1], "")
        longest = max((len(text) for text in layout["xaxis"]["ticktext"]), default=0)
        sliders = one_at_a_time([[trace] for trace in data], [str(step) for step, _ in trail], below=40 + 5 * longest)
        return data, layout | sliders

    def table(self, measured: Measured) -> Table:
        """Step, row, column and value of every cell of the latest event."""
        trail = shown(self, measured, self.most, Heatmap)
        return ("step", "row", "column", "value"), list(_cells(*trail[-1]))

    def height(self, figure: go.Figure) -> int:
        """Room for the labels of the rows."""
        return super().height(figure) + _room_for_rows(figure)


@dataclass(frozen=True)
class HeatmapOverSteps(Panel):
    """The one-column `Heatmap` results of one key, side by side: one column per step.

    Args:
        key: Key of the heatmap, and of the picture.
        title: What the picture shows.
        caption: One sentence on how to read it, drawn below the title.
        limits: Ends of the colour scale. It is extended to values outside, and negative values have another hue.
        most: The largest number of events to draw: the first, the last and evenly chosen ones between them.
        caveat: What the picture does not show. Only HTML pages and W&B reports have room for it.
    """

    limits: tuple[float, float] = (0.0, 1.0)
    most: int = 100

    def draw(self, measured: Measured) -> Drawing:
        """One column per step. If an event lacks a row, the picture has a gap.

        Raises:
            ValueError: If a heatmap does not have exactly one column.
        """
        trail = shown(self, measured, self.most, Heatmap)
        for _, result in trail:
            if result.values.shape[1] != 1:
                raise ValueError(
                    f"heatmap {result.key!r} over steps needs one column per event, got {result.values.shape[1]}"
                )
        columns = [dict(zip(_unique(one.row_labels), one.values[:, 0].tolist(), strict=True)) for _, one in trail]
        rows = list(dict.fromkeys(label for column in columns for label in column))
        steps = [str(step) for step, _ in trail]
        values = [gaps(column.get(row) for column in columns) for row in rows]
        trace = _heatmap(values, rows, steps, _ends(self.limits, values), "%{y}<br>step %{x}")
        return [trace], _layout(rows, steps, "step")

    def table(self, measured: Measured) -> Table:
        """Step, row and value of every cell."""
        trail = shown(self, measured, self.most, Heatmap)
        cells = [[step, row, value] for event in trail for step, row, _, value in _cells(*event)]
        return ("step", "row", "value"), cells

    def height(self, figure: go.Figure) -> int:
        """Room for the labels of the rows."""
        return super().height(figure) + _room_for_rows(figure)


def _cells(step: int, heatmap: Heatmap) -> Iterator[list[str | float | None]]:
    for row, values in zip(heatmap.row_labels, heatmap.values.tolist(), strict=True):
        for column, value in zip(heatmap.column_labels, gaps(values), strict=True):
            yield [step, row, column, value]


def _room_for_rows(figure: go.Figure) -> int:
    return max(0, 10 * (max(len(trace.y) for trace in figure.data) - 16))


def _heatmap(
    values: list[Numbers], rows: list[str], columns: list[str], ends: tuple[float, float], hover: str
) -> dict[str, Any]:
    # Colours and hover texts need no more than six digits, which make the file a third as large.
    return {
        "type": "heatmap",
        "z": [[None if value is None else float(f"{value:.6g}") for value in row] for row in values],
        "x": columns,
        "y": rows,
        "zmin": ends[0],
        "zmax": ends[1],
        "colorscale": _colours(*ends),
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "hovertemplate": f"{hover}<br>%{{z:.4f}}<extra></extra>",
        "hoverongaps": False,
    }


def _layout(rows: Sequence[str], columns: Sequence[str], x_title: str) -> dict[str, Any]:
    category = {"type": "category", "showgrid": False, "tickfont": {"size": 9}}
    if columns == rows:
        columns, x_title = [], "columns in the order of the rows"
    return {
        "xaxis": axis(x_title) | category | _ticks(columns) | {"tickangle": -90},
        "yaxis": axis("") | category | _ticks(rows) | {"autorange": "reversed"},
        "plot_bgcolor": LIGHT_GREY,
    }


def _ticks(labels: Sequence[str]) -> dict[str, Any]:
    """As many labels as there is room for. The hover text shows the full label."""
    chosen = labels[:: -(-len(labels) // TICKS) or 1]
    return {"tickmode": "array", "tickvals": list(chosen), "ticktext": _short(chosen)}


def _short(labels: Sequence[str]) -> list[str]:
    """Labels of at most `TICK_LENGTH` characters: without the path that all of them share, and without their middle.

    Example:
        >>> _short([f"model.encoder.blocks.{k}.attention.projection" for k in (0, 1)])
        ['0.atte…on.projection', '1.atte…on.projection']
    """
    if max(map(len, labels), default=0) <= TICK_LENGTH:
        return list(labels)
    paths = [label.split(".") for label in labels]
    shared = next((k for k, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), 0)
    cut = [".".join(path[shared:]) for path in paths]
    start, end = TICK_LENGTH // 3, TICK_LENGTH - TICK_LENGTH // 3 - 1
    return [label if len(label) <= TICK_LENGTH else f"{label[:start]}…{label[-end:]}" for label in cut]


def _ends(limits: tuple[float, float], values: list[Numbers]) -> tuple[float, float]:
    numbers = [value for row in values for value in row if value is not None]
    return min([limits[0], *numbers]), max([limits[1], *numbers])


def _colours(low: float, high: float) -> list[list[Any]]:
    """Viridis from 0 to `high` and red below 0, so that negative and small positive values look different."""
    zero = min(max(-low / (high - low), 0.0), 1.0)
    places = [k / (len(VIRIDIS) - 1) for k in range(len(VIRIDIS))]
    # With this formula the last place is exactly 1: Plotly refuses places that rounding puts above 1.
    above = [[zero * (1 - place) + place, colour] for place, colour in zip(places, VIRIDIS, strict=True)]
    return ([[0.0, BELOW_ZERO[0]], [zero, BELOW_ZERO[1]]] if zero > 0 else []) + above


def _unique(labels: Sequence[str]) -> list[str]:
    """Distinct labels for a category axis, which would merge equal ones: the second `"a"` becomes `"a (2)"`."""
    return [label if (n := labels[:k].count(label)) == 0 else f"{label} ({n + 1})" for k, label in enumerate(labels)]
