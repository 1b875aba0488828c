"""Tidy tables of what a picture shows: a row a value, a column a variable, for panels of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from lightning_probes.reporting.event import Picture
from lightning_probes.reporting.panels.base import TIME_KEYS, Curves, Heatmaps, Lines
from lightning_probes.reporting.panels.figures import CurveLine, lines_of, shown
from lightning_probes.reporting.panels.style import gaps
from lightning_probes.results import Heatmap

Table: TypeAlias = tuple[Sequence[str], list[list[str | float | None]]]
"""Names of the columns, and the rows."""


def table_key(picture: Picture) -> str:
    """The key of the table beside a picture; all lines of a probe share one."""
    return f"{picture.name}/events" if isinstance(picture.panel, Lines) else f"{picture.key}_table"


def tidy(picture: Picture) -> Table:
    """The table beside a picture.

    - Of lines: one row an event, with its step, its epoch and every number that the probe has measured; without those
      below a further "/" (layers, flags), which may be many.
    - Of curves: step, position and value of every point, and the name of its line. Position and value are called as
      the curve labels them, or "x" and "y" where two columns would have one name.
    - Of a heatmap that has a slider: step, row, column and value of every cell of the latest event.
    - Of a heatmap over steps: step, row and value of every cell.

    Args:
        picture: What is drawn.

    Returns:
        The names of the columns, and the rows.

    Example:
        >>> history = [{"step": 0, "epoch": 0, "fisher/trace": 3.0}]
        >>> tidy(Picture(Lines("trace_over_steps", "Trace", y="trace"), "fisher", history, {}))
        (['step', 'epoch', 'trace'], [[0, 0, 3.0]])
    """
    panel, key = picture.panel, picture.key
    if isinstance(panel, Lines):
        return _events(picture)
    if isinstance(panel, Curves):
        return _points(lines_of(panel, picture.trail, key))
    trail = shown(picture.trail, key, panel.most, Heatmap)
    if isinstance(panel, Heatmaps):
        return ("step", "row", "column", "value"), list(_cells(*trail[-1]))
    return ("step", "row", "value"), [[step, row, value] for event in trail for step, row, _, value in _cells(*event)]


def _points(lines: Sequence[CurveLine]) -> Table:
    curve, width = lines[-1].curve, len(str(lines[-1].step))
    rows: list[list[str | float | None]] = []
    for label, step, each in lines:
        # Aligned, because a chart sorts its lines by name.
        name = label.replace(f"step {step}", f"step {step:>{width}}")
        rows += [[step, *point, name] for point in zip(gaps(each.x), gaps(each.y), strict=True)]
    columns = ("step", _name(curve.x_label), _name(curve.y_label), "line")
    return columns if len(set(columns)) == len(columns) else ("step", "x", "y", "line"), rows


def _events(picture: Picture) -> Table:
    """Every number of a probe, without its seconds and what it has many of: layers, flags."""
    prefix = f"{picture.name}/"
    keys = dict.fromkeys(key for entry in picture.history for key in entry if key.startswith(prefix))
    columns = [name for key in keys if "/" not in (name := key.removeprefix(prefix)) and name != "seconds"]
    measured = [*TIME_KEYS, *(prefix + name for name in columns)]
    return [*TIME_KEYS, *columns], [[entry.get(key) for key in measured] for entry in picture.history]


def _cells(step: int, heatmap: Heatmap) -> Iterable[list[str | float | None]]:
    for row, values in zip(heatmap.row_labels, heatmap.values.tolist(), strict=True):
        for column, value in zip(heatmap.column_labels, gaps(values), strict=True):
            yield [step, row, column, value]


def _name(label: str) -> str:
    """A label without its unit.

    Example:
        >>> _name("loss (nats)")
        'loss'
    """
    return label.partition(" (")[0]
