"""Results are frozen, made of NumPy alone, and refuse arrays that do not fit each other."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from lightning_probes import Curve, Flag, Heatmap, Result, Scalar, Surface
from lightning_probes.results import finite

PLANE: dict[str, Any] = {"x": [0, 1, 2], "y": [-1, 1], "values": np.ones((2, 3))}


def plane(**changes: Any) -> Surface:
    return Surface("loss", **PLANE | changes)


def test_a_surface_is_frozen_and_has_arrays_of_double_precision() -> None:
    surface = plane(path=[(0, 1), (2, 0)])
    assert {each.dtype for each in (surface.x, surface.y, surface.values, surface.path)} == {np.dtype(np.float64)}
    with pytest.raises(FrozenInstanceError):
        surface.values = surface.values + 1  # type: ignore[misc]


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize(
    "positions", [[0.0], [], [1.0, 1.0], [2.0, 1.0], [0.0, np.nan], [0.0, np.inf], [[0.0, 1.0]], 1.0]
)
def test_positions_of_a_surface_increase_and_are_finite(axis: str, positions: Any) -> None:
    with pytest.raises(ValueError, match=f"'loss' needs at least two finite, increasing positions in {axis}, got"):
        plane(**{axis: positions})


@pytest.mark.parametrize(("path", "labels"), [(None, ["a"]), ([(0, 1)], ["a", "b"]), ([(0, 1), (2, 0)], ["a"])])
def test_a_path_has_one_label_a_point_or_none(path: Any, labels: list[str]) -> None:
    assert plane(path=[(0, 1), (2, 0)], path_labels=["a", "b"]).path_labels == ("a", "b")
    with pytest.raises(ValueError, match=r"surface 'loss' has \d path_labels for \d points"):
        plane(path=path, path_labels=labels)


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), (0,), ()])
def test_values_of_a_surface_have_a_row_a_y_and_a_column_an_x(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"has values of shape .*, but 2 rows \(y\) and 3 columns \(x\)"):
        plane(values=np.ones(shape))


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 2, 1), ()])
def test_a_path_has_two_coordinates_a_point(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs a path of shape \(points, 2\), got"):
        plane(path=np.ones(shape))


def test_a_path_may_have_no_points() -> None:
    assert plane(path=[]).path.shape == (0, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "result",
    [
        Scalar("a", np.nan),
        Scalar("a", 1.0, np.inf),
        Curve("a", [0, 1], [0, np.nan]),
        Curve("a", [0, 1], [0, 1], standard_error=[0, np.inf]),
        Heatmap("a", [[np.nan]], "a", "b"),
        plane(values=[[1, 2, 3], [4, 5, np.inf]]),
        plane(path=[[0, np.nan]]),
    ],
)
def test_a_number_that_is_not_finite_is_found_in_every_kind_of_result(result: Result) -> None:
    assert not finite(result)


@pytest.mark.parametrize(
    "result",
    [Scalar("a", 1.0), Curve("a", [0, np.nan], [0, 1]), Heatmap("a", [[1.0]], "a", "b"), plane(), plane(path=[[0, 1]]),
     Flag("a", True, np.nan)],
)  # fmt: skip
def test_a_missing_error_or_path_and_the_value_of_a_flag_need_not_be_finite(result: Result) -> None:
    assert finite(result)
