"""How every figure looks: palette, axes, title and caption, numbers as plain lists with gaps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Numbers: TypeAlias = list["float | None"]

BLUE, GREY, LIGHT_GREY = "#0072b2", "#666666", "#e5e5e5"
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
CAPTION_WIDTH = 64


def gaps(values: Iterable[float | None]) -> Numbers:
    """Plain floats, `None` (a gap) for what is missing or not finite.

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


def axis(title: str) -> dict[str, Any]:
    """Layout of an axis."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": LIGHT_GREY,
        "zeroline": False,
        "linecolor": GREY,
    }


def slider(prefix: str, choices: Sequence[tuple[str, dict[str, Any]]], below: int) -> dict[str, Any]:
    """A slider that stands at the last of some choices: what each is called, and what it changes in the traces.

    Args:
        prefix: Put in front of the present choice.
        choices: Labels, with the attributes that Plotly's `restyle` sets.
        below: Distance from the plot in pixels.
    """
    return {
        "active": len(choices) - 1,
        "currentvalue": {"prefix": prefix, "font": {"size": 12}},
        "pad": {"t": below},
        "steps": [{"label": label, "method": "restyle", "args": [change]} for label, change in choices],
    }


def frame(title: str, caption: str) -> dict[str, Any]:
    """Layout of a figure with its title, and its caption in small print above the plot (`name="caption"`)."""
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
