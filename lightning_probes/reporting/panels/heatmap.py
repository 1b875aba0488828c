"""Heatmaps as parts of a Plotly figure: side by side over steps, or one a step with a slider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_probes.reporting.panels.style import LIGHT_GREY, VIRIDIS, Numbers, axis, gaps, slider
from lightning_probes.results import Heatmap

BELOW_ZERO = ("#b2182b", "#fddbc7")
TICKS, TICK_LENGTH = 24, 20


def over_steps(limits: tuple[float, float], trail: Sequence[tuple[int, Heatmap]]) -> tuple[list[Any], dict[str, Any]]:
    """Traces and layout of one-column heatmaps set side by side; a row that one of them lacks is a gap there.

    Raises:
        ValueError: If a heatmap has not exactly one column.
    """
    for _, result in trail:
        if result.values.shape[1] != 1:
            raise ValueError(
                f"heatmap {result.key!r} over steps needs one column an event, got {result.values.shape[1]}"
            )
    columns = [dict(zip(_unique(result.row_labels), result.values[:, 0].tolist(), strict=True)) for _, result in trail]
    rows = list(dict.fromkeys(label for column in columns for label in column))
    steps = [str(step) for step, _ in trail]
    values = [gaps(column.get(row) for column in columns) for row in rows]
    return [_heatmap(values, rows, steps, _ends(limits, values), "%{y}<br>step %{x}")], _layout(rows, steps, "step")


def with_slider(limits: tuple[float, float], trail: Sequence[tuple[int, Heatmap]]) -> tuple[list[Any], dict[str, Any]]:
    """Traces and layout of heatmaps of which one is visible, the latest until the slider is moved."""
    matrices = [[gaps(row) for row in result.values.tolist()] for _, result in trail]
    ends = _ends(limits, [row for matrix in matrices for row in matrix])
    labels = [(_unique(result.row_labels), _unique(result.column_labels)) for _, result in trail]
    data = [_heatmap(values, *names, ends, "%{y}<br>%{x}") for values, names in zip(matrices, labels, strict=True)]
    for trace in data[:-1]:
        trace["visible"] = False
    layout = _layout(*labels[-1], "")
    if len(trail) > 1:
        longest = max((len(text) for text in layout["xaxis"]["ticktext"]), default=0)
        visible = [{"visible": [j == k for j in range(len(trail))]} for k in range(len(trail))]
        choices = [(str(step), change) for (step, _), change in zip(trail, visible, strict=True)]
        layout["sliders"] = [slider("step ", choices, below=40 + 5 * longest)]
    return data, layout


def _heatmap(
    values: list[Numbers], rows: list[str], columns: list[str], ends: tuple[float, float], hover: str
) -> dict[str, Any]:
    # Six digits are more than a colour or a hover can use, and a third of the file.
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
    """As many labels as there is room for; the hover shows them whole."""
    chosen = labels[:: -(-len(labels) // TICKS) or 1]
    return {"tickmode": "array", "tickvals": list(chosen), "ticktext": _short(chosen)}


def _short(labels: Sequence[str]) -> list[str]:
    """Labels of at most `TICK_LENGTH` characters: without the modules that all are in, and without their middle.

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
    """Viridis from 0 to `high`, red below 0, so that a negative value is never taken for a small one."""
    zero = min(max(-low / (high - low), 0.0), 1.0)
    places = [k / (len(VIRIDIS) - 1) for k in range(len(VIRIDIS))]
    # In this form the last is 1 exactly: Plotly refuses what rounding puts beyond.
    above = [[zero * (1 - place) + place, colour] for place, colour in zip(places, VIRIDIS, strict=True)]
    return ([[0.0, BELOW_ZERO[0]], [zero, BELOW_ZERO[1]]] if zero > 0 else []) + above


def _unique(labels: Sequence[str]) -> list[str]:
    """Labels of a category axis, where equal ones would fall together: the second `"a"` becomes `"a (2)"`."""
    return [label if (n := labels[:k].count(label)) == 0 else f"{label} ({n + 1})" for k, label in enumerate(labels)]
