"""The common look of all figures: palette, axes, sliders, bands, title and caption, and plain lists with gaps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Numbers: TypeAlias = list["float | None"]

BLUE, GREY, LIGHT_GREY = "#0072b2", "#666666", "#e5e5e5"
VERMILLION, GREEN = "#d55e00", "#009e73"
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
DARK = {
    BLUE: "#56b4e9", VERMILLION: "#f0894a", GREEN: "#3ecf9f", GREY: "#a3a9b3", LIGHT_GREY: "#363b43",
    "#222222": "#e4e6ea", "white": "rgba(0,0,0,0)",
}  # fmt: skip
"""For each colour, the colour that replaces it on a dark page."""
CAPTION_WIDTH = 64


def gaps(values: Iterable[float | None]) -> Numbers:
    """Plain floats, with `None` (a gap) for values that are missing or not finite.

    Example:
        >>> gaps([1, None, float("nan")])
        [1.0, None, None]
    """
    return [None if value is None or not math.isfinite(value) else float(value) for value in values]


def between(colours: Sequence[str], position: float) -> str:
    """The colour at a position from 0 to 1 along a list of hex colours.

    Example:
        >>> between(["#000000", "#ffffff"], 0.5)
        '#808080'
    """
    place = position * (len(colours) - 1)
    left, right = colours[math.floor(place)], colours[math.ceil(place)]
    pairs = [(int(left[k : k + 2], 16), int(right[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * (place % 1)):02x}" for a, b in pairs)


def axis(title: str, log: bool = False) -> dict[str, Any]:
    """Layout of an axis."""
    layout = {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": LIGHT_GREY,
        "zeroline": False,
        "linecolor": GREY,
    }
    return layout | {"type": "log"} if log else layout


def slider(prefix: str, choices: Sequence[tuple[str, dict[str, Any]]], below: int) -> dict[str, Any]:
    """A slider between several choices, which starts at the last one.

    Args:
        prefix: Text before the label of the present choice.
        choices: Labels, with the attributes that Plotly's `restyle` sets.
        below: Distance from the plot in pixels.
    """
    return {
        "active": len(choices) - 1,
        "currentvalue": {"prefix": prefix, "font": {"size": 12}},
        "pad": {"t": below},
        "steps": [{"label": label, "method": "restyle", "args": [change]} for label, change in choices],
    }


def one_at_a_time(groups: Sequence[list[dict[str, Any]]], labels: Sequence[str], below: int) -> dict[str, Any]:
    """Show the traces of the last group only. If there are several groups, a slider chooses another one.

    Args:
        groups: The traces of each choice.
        labels: The labels of the choices, which are steps.
        below: Distance of the slider from the plot in pixels.

    Returns:
        The slider as a part of the layout.
    """
    for trace in (trace for group in groups[:-1] for trace in group):
        trace["visible"] = False
    owners = [k for k, group in enumerate(groups) for _ in group]
    visible = [{"visible": [owner == k for owner in owners]} for k in range(len(groups))]
    choices = list(zip(labels, visible, strict=True))
    return {"sliders": [slider("step ", choices, below)]} if len(choices) > 1 else {}


def band(x: Numbers, y: Numbers, error: Numbers, colour: str, floor: float = -math.inf) -> dict[str, Any]:
    """A band of ±2 standard errors, cut off at `floor`: one filled polygon for each part between gaps."""
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


def frame(title: str, caption: str) -> dict[str, Any]:
    """Layout of a figure: its title, and its caption in small print above the plot (`name="caption"`)."""
    lines = textwrap.wrap(caption, CAPTION_WIDTH)
    small_print = {
        "name": "caption",
        "text": "<br>".join(lines),
        "align": "left",
        "font": {"size": 12, "color": GREY},
        "showarrow": False,
    } | {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": 1, "yanchor": "bottom", "yshift": 4}
    heading = {"text": title, "font": {"size": 16}, "xref": "paper", "x": 0, "xanchor": "left"}
    return {
        "template": "none",
        "title": heading | {"y": 1, "yanchor": "top", "pad": {"t": 12}},
        "annotations": [small_print] if lines else [],
        "margin": {"l": 60, "r": 20, "t": 44 + 17 * len(lines), "b": 50},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"size": 12, "color": "#222222"},
        "hovermode": "closest",
    }


def reference(value: float, label: str, log_y: bool = False) -> dict[str, Any]:
    """The layout of a dashed level line with a label."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    # On a log axis Plotly expects the value for a shape, but its exponent for an annotation.
    # The label is at the left: training begins there, and most lines are far from the reference.
    text = {"xref": "paper", "x": 0, "y": math.log10(value) if log_y else value, "text": label, "showarrow": False}
    return {
        "shapes": [line | {"line": {"color": GREY, "width": 1, "dash": "dash"}}],
        "annotations": [
            text | {"xanchor": "left", "xshift": 4, "yanchor": "bottom", "font": {"size": 11, "color": GREY}}
        ],
    }
