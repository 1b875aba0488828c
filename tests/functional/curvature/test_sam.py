from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes.functional.curvature.hvp import gradient
from lightning_probes.functional.curvature.sam import ascent_step
from lightning_probes.functional.parameter_vector import to_vector


@given(st.floats(1e-3, 10), st.floats(-8, 8))
def test_step_has_length_rho_along_the_gradient_whatever_its_length(rho: float, log_scale: float) -> None:
    torch.manual_seed(0)
    params = {"a": torch.randn(2, 3, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    slope = torch.randn(10, dtype=torch.float64)
    step = to_vector(ascent_step(params, 10**log_scale * slope, rho)) - to_vector(params)
    torch.testing.assert_close(step, rho * slope / slope.norm(), rtol=1e-9, atol=1e-12)


def test_sharpness_of_a_quadratic_equals_its_closed_form() -> None:
    """L = w.A.w / 2 rises by rho |g| + rho^2 g.A.g / (2 |g|^2) along its gradient g = A w."""
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    matrix, params, rho = root @ root.T, {"w": torch.randn(5, dtype=torch.float64)}, 0.05
    value, slope = gradient(lambda p: p["w"] @ matrix @ p["w"] / 2, params)
    there, _ = gradient(lambda p: p["w"] @ matrix @ p["w"] / 2, ascent_step(params, slope, rho))
    closed_form = rho * slope.norm() + rho**2 * (slope @ matrix @ slope) / (2 * slope @ slope)
    torch.testing.assert_close(there - value, closed_form)


def test_zero_gradient_leaves_the_parameters_unchanged() -> None:
    params = {"w": torch.randn(3)}
    assert torch.equal(ascent_step(params, torch.zeros(3), rho=0.1)["w"], params["w"])


def test_gradient_that_is_not_finite_is_passed_on() -> None:
    assert ascent_step({"w": torch.zeros(2)}, torch.tensor([1.0, float("nan")]), rho=0.1)["w"].isnan().all()


def test_callers_parameters_are_neither_changed_nor_tracked() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    moved = ascent_step({"w": weight}, torch.ones(2), rho=1.0)["w"]
    assert weight.tolist() == [1, 1]
    assert not moved.requires_grad


def test_gradient_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="hold 3 elements"):
        ascent_step({"w": torch.zeros(3)}, torch.zeros(2), rho=0.1)
