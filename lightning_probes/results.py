"""The results that a probe reports: frozen values with their error bars, without torch, loggers and figures.

Keys are relative to the probe that yields them (`"trace"`); the probe's `name` is put in front when they are reported
(`"fisher/trace"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scalar:
    """One number and, if it is an estimate, its standard error.

    Args:
        key: Name of the number.
        value: The number. A non-finite one is not reported; it raises the probe's `nonfinite` flag.
        standard_error: One standard error of `value`, reported as `<key>_se`. None if `value` is not an estimate, or if
            its spread can't be estimated because there is only one unit, such as one micro-batch.
        detail: Whether the number only explains another one. It is logged like any other number, but W&B shows no
            automatic panel for it.

    Example:
        >>> Scalar("trace", 13.1, standard_error=0.4)
        Scalar(key='trace', value=13.1, standard_error=0.4, detail=False)
    """

    key: str
    value: float
    standard_error: float | None = None
    detail: bool = False

    def __post_init__(self) -> None:
        for name in ("value", "standard_error"):  # numbers of any library
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))

    def numbers(self) -> tuple[float | None, ...]:
        """The numbers that must be finite."""
        return (self.value, self.standard_error)


@dataclass(frozen=True, eq=False)
class Curve:
    """Values along an axis that is not time, such as the loss between two points in parameter space.

    Args:
        key: Name of the curve.
        x: Positions, shape `(points,)`.
        y: Values, shape `(points,)`. Non-finite entries are kept here and drawn as gaps.
        x_label: The meaning of the positions, with their unit.
        y_label: The meaning of the values, with their unit.
        standard_error: One standard error of each value, shape `(points,)`.

    Raises:
        ValueError: If the arrays are not one-dimensional and of equal length.

    Example:
        >>> Curve("loss", [0.0, 1.0], [2.3, 0.1]).y
        array([2.3, 0.1])
    """

    key: str
    x: FloatArray
    y: FloatArray
    x_label: str = "x"
    y_label: str = "y"
    standard_error: FloatArray | None = None

    def __post_init__(self) -> None:
        for name in ("x", "y", "standard_error"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=np.float64))
        shapes = {self.x.shape, self.y.shape} | (set() if self.standard_error is None else {self.standard_error.shape})
        if len(shapes) != 1 or self.x.ndim != 1:
            raise ValueError(
                f"curve {self.key!r} needs one-dimensional arrays of one length, got shapes {sorted(shapes)}"
            )

    def numbers(self) -> tuple[FloatArray | None, ...]:
        """The numbers that must be finite."""
        return (self.y, self.standard_error)


@dataclass(frozen=True, eq=False)
class Heatmap:
    """A labelled matrix, such as the similarity of every layer to every other.

    Args:
        key: Name of the matrix.
        values: The matrix, shape `(rows, columns)`. Non-finite entries are kept here and drawn as gaps.
        row_labels: One label per row.
        column_labels: One label per column.

    Raises:
        ValueError: If the labels do not fit the matrix.

    Example:
        >>> Heatmap("layers", [[1.0, 0.2], [0.2, 1.0]], ("a", "b"), ("a", "b")).values.shape
        (2, 2)
    """

    key: str
    values: FloatArray
    row_labels: Sequence[str] = field(default=())
    column_labels: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_labels", tuple(self.row_labels))
        object.__setattr__(self, "column_labels", tuple(self.column_labels))
        values = np.asarray(self.values, dtype=np.float64)
        if values.shape == (0,):  # a list of no rows does not say how long they are
            values = values.reshape(0, len(self.column_labels))
        object.__setattr__(self, "values", values)
        if self.values.shape != (len(self.row_labels), len(self.column_labels)):
            raise ValueError(
                f"heatmap {self.key!r} has shape {self.values.shape} but {len(self.row_labels)} row labels "
                f"and {len(self.column_labels)} column labels"
            )

    def numbers(self) -> tuple[FloatArray, ...]:
        """The numbers that must be finite."""
        return (self.values,)


@dataclass(frozen=True, eq=False)
class Surface:
    """Values on a grid with numeric axes, such as the loss on a plane through parameter space.

    Args:
        key: Name of the surface.
        x: Positions of the columns, shape `(columns,)`, increasing.
        y: Positions of the rows, shape `(rows,)`, increasing.
        values: The value at `(x[j], y[i])` in row i and column j, shape `(rows, columns)`. Non-finite entries are kept
            here and drawn as gaps.
        path: Points of a trajectory as `(x, y)`, first to last, shape `(points, 2)`; drawn over the values.
        x_label: The meaning of the columns' positions, with their unit.
        y_label: The meaning of the rows' positions, with their unit.
        path_labels: What the points of the path are called, such as `"step 10"`; none, or one a point.

    Raises:
        ValueError: If the arrays or labels do not fit each other, or positions do not increase.

    Example:
        >>> Surface("loss", [-1, 0, 1], [0, 1], [[2.0, 1.0, 2.0], [3.0, 2.5, 3.0]], path=[[-1, 1], [0, 0]]).values.shape
        (2, 3)
    """

    key: str
    x: FloatArray
    y: FloatArray
    values: FloatArray
    path: FloatArray | None = None
    x_label: str = "x"
    y_label: str = "y"
    path_labels: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "path_labels", tuple(self.path_labels))
        for name in ("x", "y", "values", "path"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=np.float64))
        for name in ("x", "y"):
            positions = getattr(self, name)
            increases = positions.ndim == 1 and len(positions) > 1 and (np.diff(positions) > 0).all()
            if not increases or not np.isfinite(positions).all():
                raise ValueError(
                    f"surface {self.key!r} needs at least two finite, increasing positions in {name}, "
                    f"got {np.array2string(positions, threshold=10, precision=4)}"
                )
        if self.values.shape != (len(self.y), len(self.x)):
            raise ValueError(
                f"surface {self.key!r} has values of shape {self.values.shape}, but {len(self.y)} rows (y) and "
                f"{len(self.x)} columns (x)"
            )
        if self.path is not None and self.path.shape == (0,):  # a list of no points
            object.__setattr__(self, "path", self.path.reshape(0, 2))
        if self.path is not None and (self.path.ndim != 2 or self.path.shape[1] != 2):
            raise ValueError(f"surface {self.key!r} needs a path of shape (points, 2), got {self.path.shape}")
        points = 0 if self.path is None else len(self.path)
        if self.path_labels and len(self.path_labels) != points:
            raise ValueError(f"surface {self.key!r} has {len(self.path_labels)} path_labels for {points} points")

    def numbers(self) -> tuple[FloatArray | None, ...]:
        """The numbers that must be finite."""
        return (self.values, self.path)


@dataclass(frozen=True)
class Flag:
    """A statement about a measurement that somebody may want to act on.

    Args:
        key: Name of the flag, reported as ``<probe>/flag/<key>`` with value 0 or 1.
        raised: Whether the statement holds now.
        value: The number that was compared, if any.
        threshold: The number that `value` was compared with, if any.
        message: One sentence that says what was found and what it means.
        level: `"info"` if the statement describes something normal that is worth knowing; `"warning"` if `on_flag`
            should act on it.

    Example:
        >>> Flag("unstable", True, value=2.4, threshold=2.0, message="sharpness is 2.4 times the threshold").level
        'warning'
    """

    key: str
    raised: bool
    value: float | None = None
    threshold: float | None = None
    message: str = ""
    level: Literal["info", "warning"] = "warning"

    def numbers(self) -> tuple[float, ...]:
        """Empty, because a statement has no numbers that must be finite."""
        return ()


Drawn: TypeAlias = Curve | Heatmap | Surface
"""The kinds of result that have their own picture. These are kept for every event. Add a new kind of result here."""
Result: TypeAlias = Scalar | Flag | Drawn


def finite(result: Result) -> bool:
    """Whether every number of a result is finite (a flag always is: it is a statement, not a number).

    Example:
        >>> finite(Scalar("loss", float("nan")))
        False
    """
    return all(bool(np.isfinite(array).all()) for array in result.numbers() if array is not None)
