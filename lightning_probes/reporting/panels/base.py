"""The base of all kinds of pictures. Each kind has a file of its own in this folder: its data, figure and table.

A probe declares its panels once. `Picture` combines a panel with the measurements so far.

Keys are relative to the probe (`"trace"`, not `"fisher/trace"`). In a history entry only `"step"` and `"epoch"` have no
prefix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from lightning_probes.reporting.panels.style import DARK, frame
from lightning_probes.results import Drawn

if TYPE_CHECKING:
    import plotly.graph_objects as go

Item = TypeVar("Item")
Kind = TypeVar("Kind", bound=Drawn)
History: TypeAlias = Sequence[Mapping[str, float]]
Trail: TypeAlias = Mapping[str, Sequence[tuple[int, Drawn]]]
Table: TypeAlias = tuple[Sequence[str], list[list["str | float | None"]]]
"""Names of the columns, and the rows."""
Drawing: TypeAlias = tuple[list[dict[str, Any]], dict[str, Any]]
"""Traces, and the layout that is added to `frame`, which all figures share."""
TIME_KEYS = ("step", "epoch")


class Measured(NamedTuple):
    """The measurements of one probe so far.

    Attributes:
        name: Name of the probe, which precedes the keys of its panels.
        history: One entry per event under full keys; `"step"` and `"epoch"` have no prefix.
        trail: Curves, heatmaps and surfaces by full key, each with the step of its event, oldest first.
    """

    name: str
    history: History
    trail: Trail


class ScalarPlot(NamedTuple):
    """One plot for all runs: a scalar over training time, or over another scalar.

    Attributes:
        x: Key of the scalar on the x-axis; None for training time.
        y: Key of the scalar on the y-axis.
        x_title: What x is, with its unit.
        y_title: What y is, with its unit.
        log_x: Whether the x-axis is logarithmic.
        log_y: Whether the y-axis is logarithmic.
    """

    x: str | None
    y: str
    x_title: str
    y_title: str
    log_x: bool
    log_y: bool


@dataclass(frozen=True)
class Panel(ABC):
    """Data that describes a picture of a probe. Each kind of picture is a subclass, which draws it.

    Args:
        key: Name of the picture.
        title: What the picture shows.
        caption: One sentence on how to read it, drawn below the title.
        caveat: What the picture does not show. Only HTML pages and W&B reports have room for it.
        detail: Whether W&B hides the picture from its automatic panels, as it hides a `Scalar` that is a detail. The
            HTML page, workspaces and reports show it.
    """

    key: str
    title: str
    caption: str = ""
    caveat: str = field(default="", kw_only=True)
    detail: bool = field(default=False, kw_only=True)

    has_lines_by_name: ClassVar[bool] = False
    """Whether the columns of the table are a step, a position, a value and the name of a line."""

    @abstractmethod
    def draw(self, measured: Measured) -> Drawing:
        """Traces and layout, with gaps for non-finite numbers. Called only if the panel is not empty."""

    @abstractmethod
    def table(self, measured: Measured) -> Table:
        """The tidy table that belongs to the picture, one row per value, from which users build their own panels."""

    def is_empty(self, measured: Measured) -> bool:
        """Whether there is no measurement to show, for example no curve on validation data."""
        return not measured.trail.get(self.full_key(measured))

    def full_key(self, measured: Measured) -> str:
        """The key of the picture, with the name of the probe."""
        return f"{measured.name}/{self.key}"

    def table_key(self, measured: Measured) -> str:
        """The key of the table that belongs to the picture."""
        return f"{self.full_key(measured)}_table"

    def figure(self, measured: Measured) -> go.Figure:
        """The figure. It has no fixed size, and its layout suits 700 x 450 pixels.

        It is built from plain lists and dicts, because Plotly writes NumPy arrays as base64, which W&B can draw wrongly
        (plotly.py#5138). It uses only basic traces (scatter, heatmap, contour), all of which `static` can draw.
        """
        import plotly.graph_objects as go

        layout = frame(self.title, self.caption)
        data, own = self.draw(measured)
        annotations = layout["annotations"] + own.get("annotations", [])
        return go.Figure({"data": data, "layout": layout | own | {"annotations": annotations}})

    def scalar_plot(self) -> ScalarPlot | None:
        """The scalar that the panel shows, so that one plot can compare all runs; None if it shows no scalar."""
        return None

    def title_with_unit(self) -> str:
        """The title, with the unit of the values."""
        return self.title

    def dark_colours(self, figure: go.Figure) -> Mapping[str, str]:
        """For each colour of the figure, the colour that replaces it on a dark page."""
        return DARK

    def height(self, figure: go.Figure) -> int:
        """The height of the figure on a page, in pixels."""
        return 380 + 60 * bool(figure.layout.sliders)


def shown(panel: Panel, measured: Measured, most: int, kind: type[Kind]) -> list[tuple[int, Kind]]:
    """The results of one kind in a picture of at most `most` events, with their steps."""
    trail = measured.trail.get(panel.full_key(measured), ())
    return thin([(step, result) for step, result in trail if isinstance(result, kind)], most)


def thin(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` items: the first, the last, and evenly chosen ones between them.

    Example:
        >>> thin(range(11), 3)
        [0, 5, 10]
    """
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / max(most - 1, 1))] for i in range(most - 1)] + [items[last]]


def worth_redrawing(events: int) -> bool:
    """Whether pictures should be drawn again after this many events.

    Each picture shows all events so far, so drawing at every event would cost the square of their number. The first 32
    events are all drawn. After that, pictures are drawn 16 times while the number of events doubles, so the cost is
    linear. Callers draw once more at the end.

    Example:
        >>> [events for events in range(1, 80) if not worth_redrawing(events)][:3]
        [33, 35, 37]
    """
    return events % (1 << max(events.bit_length() - 5, 0)) == 0
