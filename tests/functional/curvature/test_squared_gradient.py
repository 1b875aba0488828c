"""The squared norm of a gradient and its derivative, against an explicit Hessian."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_probes.functional.curvature.squared_gradient import squared_gradient

MATRIX = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PARAMS = {"a": torch.arange(1.0, 3.0, dtype=torch.float64), "b": torch.arange(-1.0, 2.0, dtype=torch.float64)}


def loss(params: Mapping[str, Tensor]) -> Tensor:
    point = torch.cat([params["a"], params["b"]])
    return (MATRIX @ point).pow(4).sum() + (point[0] * point[3]).sin()


def of_vector(point: Tensor) -> Tensor:
    return loss({"a": point[:2], "b": point[2:]})


def test_its_derivative_is_twice_the_hessian_times_the_gradient() -> None:
    point = torch.cat([*PARAMS.values()])
    slope = torch.func.grad(of_vector)(point)
    value, derivative = squared_gradient(loss, PARAMS)
    torch.testing.assert_close(value, slope @ slope)
    torch.testing.assert_close(derivative, 2 * torch.func.hessian(of_vector)(point) @ slope)


def test_the_part_of_a_parameter_that_is_left_out_is_missing_in_the_norm_alone() -> None:
    point = torch.cat([*PARAMS.values()])
    slope = torch.func.grad(of_vector)(point)
    slope[:2] = 0
    value, derivative = squared_gradient(loss, PARAMS, but=["a"])
    torch.testing.assert_close(value, slope @ slope)
    torch.testing.assert_close(derivative, 2 * torch.func.hessian(of_vector)(point) @ slope)
    assert derivative[:2].abs().min() > 0


def test_the_gradient_of_nothing_is_zero() -> None:
    value, derivative = squared_gradient(loss, PARAMS, but=["a", "b"])
    assert float(value) == float(derivative.abs().max()) == 0
