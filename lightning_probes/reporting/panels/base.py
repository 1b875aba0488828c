"""What a probe wants to have drawn, as data: which of its keys, in which kind of picture.

A probe declares its panels once; `Picture` joins a panel with what was measured so far, and `figures` draws the two.

Keys are relative to the probe (`"trace"`, not `"fisher/trace"`); `"step"` and `"epoch"` are the two keys of a history
entry that have no probe in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

Item = TypeVar("Item")
TIME_KEYS = ("step", "epoch")


@dataclass(frozen=True)
class Lines:
    """A scalar against training time, or against another scalar, with its ±2 standard error band where it has one.

    The standard error is the history's `<y>_se`; against anything but time it is drawn as error bars, because the other
    scalar need not grow.

    Args:
        key: Name of the picture.
        title: What is seen.
        caption: One sentence on how to read it, drawn below the title.
        y: Key of the scalar.
        x: `"step"`, `"epoch"` or the key of another scalar.
        x_label: Axis title with its unit; by default the key.
        y_label: Axis title with its unit; by default the key.
        reference: A horizontal line, as `(value, label)`.
        log_x: Logarithmic axis; for time that of step + 1, since it has no place for step 0.
        log_y: Logarithmic values.
        caveat: What the picture does not show; for pages, which have room for it.

    Example:
        >>> Lines("ratio_over_steps", "Stability", "above 1 is unstable", y="ratio", reference=(1.0, "edge")).x
        'step'
    """

    key: str
    title: str
    caption: str = ""
    y: str = field(kw_only=True)
    x: str = "step"
    x_label: str | None = None
    y_label: str | None = None
    reference: tuple[float, str] | None = None
    log_x: bool = False
    log_y: bool = False
    caveat: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Curves:
    """The `Curve` results of one key, one line an event, coloured from light (early) to dark (late), with a slider.

    Args:
        key: Key of the curve, which names the picture too.
        title: What is seen.
        caption: One sentence on how to read it, drawn below the title.
        band: Whether to draw ±2 standard errors about every line.
        most: How many events to draw at most: the first, the last and evenly chosen ones between them.
        start: Name of the point that all curves start from; drawn as a level line, in the lightest colour.
        caveat: What the picture does not show; for pages, which have room for it.
    """

    key: str
    title: str
    caption: str = ""
    band: bool = False
    most: int = 20
    start: str | None = None
    caveat: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Heatmaps:
    """The `Heatmap` results of one key, with a slider over the events.

    Args:
        key: Key of the heatmap, which names the picture too.
        title: What is seen.
        caption: One sentence on how to read it, drawn below the title.
        limits: Ends of the colour scale, widened where values lie outside; below 0 the hue changes.
        most: How many events to keep on the slider: the first, the last and evenly chosen ones between them.
        caveat: What the picture does not show; for pages, which have room for it.
    """

    key: str
    title: str
    caption: str = ""
    limits: tuple[float, float] = (0.0, 1.0)
    most: int = 20
    caveat: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class HeatmapOverSteps:
    """The one-column `Heatmap` results of one key, set side by side: rows by steps.

    Args:
        key: Key of the heatmap, which names the picture too.
        title: What is seen.
        caption: One sentence on how to read it, drawn below the title.
        limits: Ends of the colour scale, widened where values lie outside; below 0 the hue changes.
        most: How many events to draw at most: the first, the last and evenly chosen ones between them.
        caveat: What the picture does not show; for pages, which have room for it.
    """

    key: str
    title: str
    caption: str = ""
    limits: tuple[float, float] = (0.0, 1.0)
    most: int = 100
    caveat: str = field(default="", kw_only=True)


Panel: TypeAlias = Lines | Curves | Heatmaps | HeatmapOverSteps


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
