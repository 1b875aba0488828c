"""What all kinds of pictures share. Each kind is one file beside this one: its data, its figure, its table.

A probe declares its panels once; `Picture` joins a panel with what was measured so far.

Keys are relative to the probe (`"trace"`, not `"fisher/trace"`); `"step"` and `"epoch"` are the two keys of a history
entry that have no probe in front.
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
"""Traces, and what the layout has beside the frame that all figures share."""
TIME_KEYS = ("step", "epoch")


class Measured(NamedTuple):
    """What one probe has measured so far.

    Attributes:
        name: Name of the probe, put in front of the keys of its panels.
        history: One entry an event under full keys; `"step"` and `"epoch"` stand bare.
        trail: What has a picture of its own by full key, each with the step of its event, oldest first.
    """

    name: str
    history: History
    trail: Trail


class ScalarPlot(NamedTuple):
    """A scalar over time, or over another scalar, as one plot shows it for all runs.

    Attributes:
        x: Key of the scalar on the x-axis; None for time.
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
    """What a probe wants to have drawn, as data. A kind of picture is a subclass that says how.

    Args:
        key: Name of the picture.
        title: What is seen.
        caption: One sentence on how to read it, drawn below the title.
        caveat: What the picture does not show; for pages, which have room for it.
    """

    key: str
    title: str
    caption: str = ""
    caveat: str = field(default="", kw_only=True)

    has_lines_by_name: ClassVar[bool] = False
    """Whether the columns of the table are a step, a position, a value and the name of a line."""

    @abstractmethod
    def draw(self, measured: Measured) -> Drawing:
        """Traces and layout, numbers that are not finite being gaps; called only if the panel is not empty."""

    @abstractmethod
    def table(self, measured: Measured) -> Table:
        """The tidy table beside the picture, from which users build their own panels: one row per value."""

    def is_empty(self, measured: Measured) -> bool:
        """Whether the run has measured nothing that the panel shows, such as a curve on validation data."""
        return not measured.trail.get(self.full_key(measured))

    def full_key(self, measured: Measured) -> str:
        """The key of the picture, with the name of the probe."""
        return f"{measured.name}/{self.key}"

    def table_key(self, measured: Measured) -> str:
        """The key of the table beside the picture."""
        return f"{self.full_key(measured)}_table"

    def figure(self, measured: Measured) -> go.Figure:
        """The figure, without a size of its own, laid out for 700 x 450.

        It is built from plain lists and dicts: Plotly writes NumPy arrays as base64, which the W&B page has been seen
        to draw wrongly (plotly.py#5138). Only basic traces (scatter, heatmap, contour) are used; `static` can draw
        every one of them.
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
        """What each colour of the figure becomes on a dark page."""
        return DARK

    def height(self, figure: go.Figure) -> int:
        """How many pixels high the figure is to be on a page."""
        return 380 + 60 * bool(figure.layout.sliders)


def shown(panel: Panel, measured: Measured, most: int, kind: type[Kind]) -> list[tuple[int, Kind]]:
    """The results of one kind that a picture of at most `most` events shows, with their steps."""
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
    """Whether pictures of a history this long should be drawn again.

    Each picture shows everything so far, so drawing it at every event costs the square of their number. Up to 32 events
    each is drawn, then 16 times a doubling, which is linear. A caller draws once more at the end.

    Example:
        >>> [events for events in range(1, 80) if not worth_redrawing(events)][:3]
        [33, 35, 37]
    """
    return events % (1 << max(events.bit_length() - 5, 0)) == 0
