"""What a probe reports: frozen values with their error bars, free of torch, loggers and figures.

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
    """One number and, where it is an estimate, its standard error.

    Args:
        key: Name of the number.
        value: The number. A non-finite one is not reported; it raises the probe's `nonfinite` flag.
        standard_error: One standard error of `value`, reported as `<key>_se`; None where `value` is not an estimate
            or where one unit (one micro-batch, say) leaves nothing to estimate the spread from.
        detail: Whether the number only explains another one. It is logged like any other, and W&B makes no panel of it
            by itself.

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
        """What has to be finite."""
        return (self.value, self.standard_error)


@dataclass(frozen=True, eq=False)
class Curve:
    """Values along an axis that is not time, such as the loss between two points in parameter space.

    Args:
        key: Name of the curve.
        x: Positions, shape `(points,)`.
        y: Values, shape `(points,)`. Non-finite entries are kept here and drawn as gaps.
        x_label: What the positions are, with their unit.
        y_label: What the values are, with their unit.
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
        """What has to be finite."""
        return (self.y, self.standard_error)


@dataclass(frozen=True, eq=False)
class Heatmap:
    """A labelled matrix, such as the similarity of every layer to every other.

    Args:
        key: Name of the matrix.
        values: The matrix, shape `(rows, columns)`. Non-finite entries are kept here and drawn as gaps.
        row_labels: One label a row.
        column_labels: One label a column.

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
        """What has to be finite."""
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
        x_label: What the positions of the columns are, with their unit.
        y_label: What the positions of the rows are, with their unit.

    Raises:
        ValueError: If the arrays do not fit each other, or positions do not increase.

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

    def __post_init__(self) -> None:
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

    def numbers(self) -> tuple[FloatArray | None, ...]:
        """What has to be finite."""
        return (self.values, self.path)


@dataclass(frozen=True)
class Flag:
    """A statement about a measurement that somebody may want to act on.

    Args:
        key: Name of the flag, reported as ``<probe>/flag/<key>`` with value 0 or 1.
        raised: Whether it holds now.
        value: The number that was compared, if there is one.
        threshold: What it was compared with, if anything.
        message: One sentence: what was seen and what it means.
        level: `"info"` for what is normal but worth knowing, `"warning"` for what `on_flag` acts on.

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
        """A statement has none that has to be finite."""
        return ()


Drawn: TypeAlias = Curve | Heatmap | Surface
"""What has a picture of its own, and so is kept of every event. A new kind of result is added here."""
Result: TypeAlias = Scalar | Flag | Drawn


def finite(result: Result) -> bool:
    """Whether every number of a result is finite (a flag always is: it is a statement, not a number).

    Example:
        >>> finite(Scalar("loss", float("nan")))
        False
    """
    return all(bool(np.isfinite(array).all()) for array in result.numbers() if array is not None)
