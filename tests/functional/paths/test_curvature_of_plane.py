from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_probes.functional.paths.curvature_of_plane import flat_share, nonconvexity, principal_curvatures

Function = Callable[[Tensor, Tensor], Tensor]


def grid(function: Function, columns: int = 21, rows: int = 11, dtype: torch.dtype = torch.float64) -> Tensor:
    x, y = torch.linspace(-1, 1, columns, dtype=torch.float64), torch.linspace(-1, 1, rows, dtype=torch.float64)
    return function(x[None], y[:, None]).expand(rows, columns).to(dtype)


def measure(function: Function, dtype: torch.dtype = torch.float64) -> float:
    return nonconvexity(grid(function, dtype=dtype), 0.1, 0.2, torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: x**2 + 3 * y**2, 0.0),
        (lambda x, y: x**2 - y**2, 1.0),
        (lambda x, y: 2 * x * y, 1.0),  # the same saddle, turned by 45 degrees
        (lambda x, y: 4 * x**2 - y**2, 0.25),
        (lambda x, y: -(x**2) - 4 * y**2, 1.0),
        (lambda x, y: (x + 2 * y) ** 2, 0.0),  # a valley: flat in one direction
        (lambda x, y: x + 2 * y + 5, 0.0),
        (lambda x, y: 0 * x * y, 0.0),
        (lambda x, y: 1e6 + 0 * x * y, 0.0),
    ],
)
def test_nonconvexity_of_quadratic_and_linear_surfaces(
    function: Function, expected: float, dtype: torch.dtype
) -> None:  # fmt: skip
    assert measure(function, dtype) == pytest.approx(expected, abs=1e-4 if dtype == torch.float32 else 1e-9)


def test_nonconvexity_does_not_depend_on_the_unit_of_the_loss() -> None:
    def rugged(x: Tensor, y: Tensor) -> Tensor:
        return torch.cos(5 * x) * torch.sin(4 * y) + x**2

    assert measure(lambda x, y: 1e3 * rugged(x, y)) == pytest.approx(measure(rugged))
    assert 0 < measure(rugged) < 1


def test_principal_curvatures_equal_the_eigenvalues_of_the_hessian_of_a_quadratic() -> None:
    hessian = torch.tensor([[3.0, 1.5], [1.5, -2.0]], dtype=torch.float64)
    surface = grid(lambda x, y: 1.5 * x**2 + 1.5 * x * y - y**2)
    low, high = principal_curvatures(surface, 0.1, 0.2)
    assert low.shape == high.shape == (9, 19)
    expected = torch.linalg.eigvalsh(hessian)
    assert torch.allclose(low, expected[0])
    assert torch.allclose(high, expected[1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_leaves_no_number_of_the_finite_rest(value: float) -> None:
    surface = grid(lambda x, y: x**2 + y**2)
    surface = surface.clone()
    surface[0, 0] = value
    assert math.isnan(nonconvexity(surface, 0.1, 0.2))
    assert math.isnan(flat_share(surface, 0.0))
    assert math.isnan(flat_share(torch.zeros(2, 2), value))


def test_a_grid_without_inner_points_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 3 x 3 points, got shape \(2, 5\)"):
        principal_curvatures(torch.zeros(2, 5), 1.0, 1.0)


def test_flat_share_counts_points_below_a_rise_above_the_centre() -> None:
    surface = grid(lambda x, y: 10 + 4.1 * x**2 + 0 * y)
    assert flat_share(surface, 10.0) == pytest.approx(9 / 21)  # |x| < 0.49
    assert flat_share(surface, 10.0, rise=5.0) == 1.0
