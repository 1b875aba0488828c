from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_probes.functional.units.assignment import assignment

SIDES = hnp.array_shapes(min_dims=1, max_dims=1, min_side=1, max_side=12).map(lambda shape: shape * 2)


def total(gains: Tensor, columns: Tensor | np.ndarray) -> float:
    return float(gains[torch.arange(len(gains)), torch.as_tensor(columns)].sum())


def assert_optimal(gains: Tensor) -> None:
    found = assignment(gains)
    assert sorted(found.tolist()) == list(range(len(gains)))
    best = total(gains, linear_sum_assignment(gains.numpy(), maximize=True)[1])
    assert total(gains, found) == pytest.approx(best, rel=1e-12, abs=1e-12 * float(gains.abs().sum()))


@given(hnp.arrays(np.float64, SIDES, elements=st.floats(-1e6, 1e6)))
@settings(deadline=None)
def test_sum_is_that_of_scipy(gains: np.ndarray) -> None:
    assert_optimal(torch.from_numpy(gains))


@given(hnp.arrays(np.float64, SIDES, elements=st.integers(0, 2)))
@settings(deadline=None)
def test_sum_is_that_of_scipy_where_many_columns_are_as_good(gains: np.ndarray) -> None:
    assert_optimal(torch.from_numpy(gains))


@given(st.integers(2, 40), st.integers(1, 3), st.integers(0, 2**31))
@settings(deadline=None)
def test_sum_is_that_of_scipy_for_few_features_of_which_some_are_zero(units: int, features: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, units, features, dtype=torch.float64, generator=draws)
    assert_optimal(a.relu() @ b.relu().T)


@pytest.mark.parametrize("units", [1, 2, 60, 300])
def test_permutation_of_noisy_units_is_found(units: int) -> None:
    draws = torch.Generator().manual_seed(units)
    here = torch.randn(units, 64, generator=draws)
    order = torch.randperm(units, generator=draws)
    there = here[order] + 0.1 * torch.randn(units, 64, generator=draws)
    assert torch.equal(order[assignment(here @ there.T)], torch.arange(units))


@pytest.mark.parametrize("units", [100, 200])
def test_random_gains_reach_the_sum_of_scipy(units: int) -> None:
    assert_optimal(torch.rand(units, units, dtype=torch.float64, generator=torch.Generator().manual_seed(units)))


def test_no_units_have_an_empty_permutation() -> None:
    assert assignment(torch.zeros(0, 0)).tolist() == []


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 2, 2)])
def test_what_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"square matrix, got shape"):
        assignment(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        assignment([[0.0, value], [1.0, 2.0]])
