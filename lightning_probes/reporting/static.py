"""Draw a Plotly figure with Matplotlib, for TensorBoard and PNG files.

Only the parts of Plotly that panels use are supported. Matplotlib is optional. Only its object-oriented interface is
used, so `pyplot` and the window system keep their state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure


def draw(figure: go.Figure) -> Figure:
    """A Plotly figure of this package, drawn by Matplotlib. If it has a slider, the active step is drawn.

    Args:
        figure: A figure of a panel: lines, filled bands, heatmaps, contours and horizontal lines.

    Returns:
        A figure of 7 x 4.5 inches at 100 dots per inch, which is not registered with `pyplot`; `savefig` writes it.

    Raises:
        ModuleNotFoundError: If Matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    layout = figure.layout
    canvas = Figure(figsize=(7.0, 4.5), dpi=100, layout="constrained")
    axes = canvas.subplots()
    for trace in figure.data:
        if trace.visible is False:
            continue
        if trace.type == "heatmap":
            _heatmap(axes, trace, layout)
        elif trace.type == "contour":
            _contours(axes, trace, layout)
        elif trace.fill == "toself":
            _polygons(axes, trace)
        else:
            _line(axes, trace)
    labels = [note for note in layout.annotations if note.name != "caption"]
    for shape, label in zip(layout.shapes, labels, strict=True):
        colour, place = shape.line.color, ("axes fraction", "data")
        axes.axhline(shape.y0, color=colour, linewidth=shape.line.width, linestyle="--")
        axes.annotate(label.text, (0.01, shape.y0), xycoords=place, ha="left", va="bottom", fontsize=8, color=colour)
    if layout.xaxis.type == "log":
        axes.set_xscale("log")
    if layout.yaxis.type == "log":
        axes.set_yscale("log")
    axes.set(xlim=layout.xaxis.range, ylim=layout.yaxis.range)
    axes.set(xlabel=layout.xaxis.title.text, ylabel=layout.yaxis.title.text)
    _titles(canvas, axes, figure)
    if any(trace.showlegend for trace in figure.data):
        canvas.legend(loc="outside right upper", fontsize=7, frameon=False)
    return canvas


def pixels(figure: go.Figure) -> npt.NDArray[np.uint8]:
    """`draw`, as an image of shape `(height, width, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(draw(figure))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _line(axes: Axes, trace: Any) -> None:
    x, y, colour = _gapped(trace.x), _gapped(trace.y), trace.line.color
    marker, size = ("o", 0.7 * trace.marker.size) if "markers" in trace.mode else (None, None)
    look = {"linewidth": 1.5} if trace.line.dash is None else {"linewidth": 0.8, "linestyle": "--"}
    label = trace.name if trace.showlegend else None
    axes.plot(x, y, color=colour, marker=marker, markersize=size, label=label, **look)
    if "text" in trace.mode:
        _labels(axes, trace)
    if trace.error_y.array is not None:
        axes.errorbar(x, y, _gapped(trace.error_y.array), fmt="none", ecolor=colour, elinewidth=0.8)


def _labels(axes: Axes, trace: Any) -> None:
    """The texts above the points, with a dark rim like the shadow of Plotly's."""
    from matplotlib.patheffects import withStroke

    look = {
        "ha": "center",
        "fontsize": 8,
        "color": trace.textfont.color,
        "path_effects": [withStroke(linewidth=2, foreground="#222222")],
    }
    for x, y, text in zip(trace.x, trace.y, trace.text, strict=True):
        if text:
            axes.annotate(text, (x, y), (0, 5), textcoords="offset points", **look)


def _polygons(axes: Axes, trace: Any) -> None:
    """One filled polygon for each part between gaps, as Plotly draws them."""
    corners = np.stack([_gapped(trace.x), _gapped(trace.y)], axis=1)
    breaks = np.flatnonzero(np.isnan(corners).any(axis=1))
    for polygon in np.split(corners, breaks):
        polygon = polygon[~np.isnan(polygon).any(axis=1)]
        axes.fill(*polygon.T, facecolor=trace.fillcolor, edgecolor=trace.fillcolor, alpha=trace.opacity, linewidth=1)


def _contours(axes: Axes, trace: Any, layout: Any) -> None:
    values = np.ma.masked_invalid(np.stack([_gapped(row) for row in trace.z]))
    axes.set_facecolor(layout.plot_bgcolor)
    if not values.count():
        return
    shades, wanted = np.linspace(trace.zmin, trace.zmax, 257), trace.contours
    image = axes.contourf(trace.x, trace.y, values, levels=shades, cmap=_colours(trace))
    levels = np.arange(wanted.start, wanted.end, wanted.size)
    levels = levels[(levels > values.min()) & (levels < values.max())]  # Matplotlib warns about other levels
    look = {"colors": trace.line.color, "linewidths": trace.line.width, "linestyles": "solid"}
    axes.contour(trace.x, trace.y, values, levels=levels, **look)
    ticks, bar = np.linspace(trace.zmin, trace.zmax, 6), trace.colorbar
    scale = axes.figure.colorbar(image, ax=axes, pad=0.02, ticks=ticks if bar.tickvals is None else bar.tickvals)
    if bar.ticktext is not None:
        scale.set_ticks(bar.tickvals, labels=bar.ticktext)


def _colours(trace: Any) -> LinearSegmentedColormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("probes", [(float(at), colour) for at, colour in trace.colorscale])


def _heatmap(axes: Axes, trace: Any, layout: Any) -> None:
    values = np.stack([_gapped(row) for row in trace.z])
    colours = _colours(trace)
    image = axes.imshow(values, cmap=colours, vmin=trace.zmin, vmax=trace.zmax, aspect="auto", interpolation="nearest")
    axes.set_facecolor(layout.plot_bgcolor)
    for axis, labels, ticks in ((axes.xaxis, trace.x, layout.xaxis), (axes.yaxis, trace.y, layout.yaxis)):
        axis.set_ticks([labels.index(label) for label in ticks.tickvals], ticks.ticktext, fontsize=7)
    axes.tick_params(axis="x", rotation=90)
    axes.figure.colorbar(image, ax=axes, pad=0.02)


def _titles(canvas: Figure, axes: Axes, figure: go.Figure) -> None:
    title = figure.layout.title.text
    for slider in figure.layout.sliders:
        if any(trace.visible is False for trace in figure.data):  # otherwise all steps are drawn
            title += f", step {slider.steps[slider.active].label}"
    canvas.suptitle(title, fontsize=12, x=0.02, ha="left")
    for note in figure.layout.annotations:
        if note.name == "caption":
            axes.set_title(note.text.replace("<br>", "\n"), fontsize=8, color=note.font.color, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _gapped(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
