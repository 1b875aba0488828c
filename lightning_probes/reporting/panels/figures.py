"""Panel and measurements → Plotly figure.

Figures are built as plain lists and dicts: Plotly writes NumPy arrays as base64, which the W&B page has been seen to
draw wrongly (plotly.py#5138). Only basic traces (scatter, heatmap) are used; `static` can draw every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from lightning_probes.reporting.panels.base import TIME_KEYS, Curves, Heatmaps, Lines, Panel, thin
from lightning_probes.reporting.panels.heatmap import over_steps, with_slider
from lightning_probes.reporting.panels.style import BLUE, GREY, VIRIDIS, Numbers, axis, between, frame, gaps, slider
from lightning_probes.results import Curve, Heatmap

if TYPE_CHECKING:
    import plotly.graph_objects as go

History: TypeAlias = Sequence[Mapping[str, float]]
Trail: TypeAlias = Mapping[str, Sequence[tuple[int, Curve | Heatmap]]]
Kind = TypeVar("Kind", Curve, Heatmap)

# From light (early) to dark (late), without the yellow end that a white page swallows.
EARLY_TO_LATE = VIRIDIS[7::-1]
FADED = 0.15


class CurveLine(NamedTuple):
    """One line of a picture of curves: its name, the step of its event, and what is drawn."""

    label: str
    step: int
    curve: Curve


def draw(panel: Panel, name: str, history: History, trail: Trail) -> go.Figure:
    """The figure of a panel, numbers that are not finite being gaps.

    Args:
        panel: What to draw.
        name: Name of the probe, put in front of the panel's keys.
        history: One entry an event under full keys; `"step"` and `"epoch"` stand bare.
        trail: Curves and heatmaps by full key, each with the step of its event, oldest first; not empty for this panel.

    Returns:
        A `plotly.graph_objects.Figure` without a size of its own, laid out for 700 x 450.

    Example:
        >>> figure = draw(Curves("loss", "Loss"), "line", [], {"line/loss": [(5, Curve("loss", [0, 1], [2.0, 0.1]))]})
        >>> figure.data[0].name
        'step 5'
    """
    import plotly.graph_objects as go

    key, layout = f"{name}/{panel.key}", frame(panel.title, panel.caption)
    if isinstance(panel, Lines):
        data, own = _lines(panel, name, history)
        layout["annotations"] += own.pop("annotations")
    elif isinstance(panel, Curves):
        data, own = _curves(panel.band, lines_of(panel, trail, key))
    else:
        arrange = with_slider if isinstance(panel, Heatmaps) else over_steps
        data, own = arrange(panel.limits, shown(trail, key, panel.most, Heatmap))
    return go.Figure({"data": data, "layout": layout | own})


def shown(trail: Trail, key: str, most: int, kind: type[Kind]) -> list[tuple[int, Kind]]:
    """The results of one kind under `key` that a picture of at most `most` events shows, with their steps."""
    return thin([(step, result) for step, result in trail.get(key, ()) if isinstance(result, kind)], most)


def lines_of(panel: Curves, trail: Trail, key: str) -> list[CurveLine]:
    """The lines that a picture of curves shows, early ones first, with a level one for where they start."""
    curves = shown(trail, key, panel.most, Curve)
    lines = [CurveLine(f"step {step}", step, curve) for step, curve in curves]
    if panel.start is None:
        return lines
    first = curves[0][1]
    level = replace(first, y=np.full_like(first.y, first.y[0]), standard_error=None)
    return [CurveLine(panel.start, 0, level), *lines]


def _lines(panel: Lines, name: str, history: History) -> tuple[list[Any], dict[str, Any]]:
    over_time = panel.x in TIME_KEYS
    x_key, y_key = panel.x if over_time else f"{name}/{panel.x}", f"{name}/{panel.y}"
    # A log axis has no place for step 0, so it shows steps from 1 on, and says so.
    shift = int(panel.log_x and over_time)
    x = gaps(entry[x_key] + shift if x_key in entry else None for entry in history)
    y = gaps(entry.get(y_key) for entry in history)
    error = gaps(entry.get(f"{y_key}_se") for entry in history)
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "name": panel.y,
        "line": {"color": BLUE, "width": 2},
        "marker": {"color": BLUE, "size": 5},
        "text": [f"step {int(entry['step'])}" for entry in history],
        "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        "showlegend": False,
    }
    data = [line]
    if any(value is not None for value in error):
        if over_time:
            data = [_band(x, y, error, BLUE, _floor(y) if panel.log_y else -math.inf), line]
        else:
            # A band would cross itself where x goes back and forth.
            line["error_y"] = {"type": "data", "array": [2 * (e or 0.0) for e in error], "color": BLUE, "thickness": 1}
    layout: dict[str, Any] = {
        "xaxis": axis((panel.x_label or x_key) + " + 1" * shift) | {"type": "log" if panel.log_x else "linear"},
        "yaxis": axis(panel.y_label or y_key) | {"type": "log" if panel.log_y else "linear"},
        "annotations": [],
    }
    return data, layout if panel.reference is None else layout | _reference(*panel.reference, panel.log_y)


def _curves(band: bool, lines: Sequence[CurveLine]) -> tuple[list[Any], dict[str, Any]]:
    data: list[Any] = []
    owners: list[int] = []  # of each trace, the place of its line
    for k, (label, _, curve) in enumerate(lines):
        x, y = gaps(curve.x.tolist()), gaps(curve.y.tolist())
        colour = between(EARLY_TO_LATE, k / (len(lines) - 1) if len(lines) > 1 else 1.0)
        if band and curve.standard_error is not None:
            data.append(_band(x, y, gaps(curve.standard_error.tolist()), colour))
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
        owners += [k] * (len(data) - len(owners))
    latest = lines[-1].curve
    layout: dict[str, Any] = {"xaxis": axis(latest.x_label), "yaxis": axis(latest.y_label)}
    if len(lines) > 1:
        # At its end the slider shows all as they are; before it, one line stands out from the others.
        full = [trace.get("opacity", 1.0) for trace in data]
        choices = [
            (name, {"opacity": [o if owner == k else o * FADED for o, owner in zip(full, owners, strict=True)]})
            for k, name in enumerate(line.label.removeprefix("step ") for line in lines)
        ]
        layout["sliders"] = [slider("step: ", [*choices, ("all", {"opacity": full})], below=50)]
    return data, layout


def _band(x: Numbers, y: Numbers, error: Numbers, colour: str, floor: float = -math.inf) -> dict[str, Any]:
    """±2 standard errors as one filled polygon for every unbroken stretch, cut off at `floor`."""
    outline: list[tuple[float | None, float | None]] = []
    stretch: list[tuple[float, float, float]] = []
    for at, value, e in [*zip(x, y, error, strict=True), (None, None, None)]:
        if at is not None and value is not None and e is not None:
            stretch.append((at, max(value - 2 * e, floor), value + 2 * e))
        elif stretch:
            outline += [(None, None)] * bool(outline)
            outline += [(at, high) for at, _, high in stretch] + [(at, low) for at, low, _ in reversed(stretch)]
            stretch = []
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [at for at, _ in outline],
        "y": [edge for _, edge in outline],
        "fill": "toself",
        "fillcolor": colour,
        "line": {"color": colour, "width": 1},
        "opacity": 0.2,
        "name": "±2 s.e.",
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _floor(y: Numbers) -> float:
    """Where a log axis cuts off a band that reaches zero: a tenth of the least positive value."""
    return min((value for value in y if value is not None and value > 0), default=1.0) / 10


def _reference(value: float, label: str, log_y: bool) -> dict[str, Any]:
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    # Plotly takes a shape's place on a log axis as a value, an annotation's as its exponent.
    # At the left, where training begins and most lines are far from what they may reach.
    text = {"xref": "paper", "x": 0, "y": math.log10(value) if log_y else value, "text": label, "showarrow": False}
    return {
        "shapes": [line | {"line": {"color": GREY, "width": 1, "dash": "dash"}}],
        "annotations": [
            text | {"xanchor": "left", "xshift": 4, "yanchor": "bottom", "font": {"size": 11, "color": GREY}}
        ],
    }
