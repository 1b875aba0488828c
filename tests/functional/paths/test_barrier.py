from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_probes.functional.paths.barrier import barrier, barrier_mean, rise_above_ends
from lightning_probes.functional.paths.interpolation import alphas

losses = st.lists(st.floats(0, 100), min_size=2, max_size=12)


def all_three(curve: torch.Tensor) -> list[float]:
    return [
        barrier(curve, alphas(len(curve))).value, barrier_mean(curve).value, rise_above_ends(curve).value
    ]  # fmt: skip


@given(losses)
def test_at_equal_ends_the_three_baselines_give_the_same_and_none_is_negative(middle: list[float]) -> None:
    curve = torch.tensor([2.0, *middle, 2.0], dtype=torch.float64)
    found = all_three(curve)
    assert found == pytest.approx([max(0.0, max(middle) - 2)] * 3, abs=1e-12)
    assert min(found) >= 0


@given(st.floats(0, 1e3), st.integers(2, 25))
def test_equal_losses_have_a_barrier_of_exactly_zero(loss: float, points: int) -> None:
    assert all_three(torch.full((points,), loss, dtype=torch.float64)) == [0.0, 0.0, 0.0]


@given(losses)
def test_a_reversed_curve_has_the_same_barriers(curve: list[float]) -> None:
    there = torch.tensor(curve, dtype=torch.float64)
    assert all_three(there.flip(0)) == pytest.approx(all_three(there), abs=1e-9)


def test_a_line_that_falls_to_a_finished_run_rises_nowhere_and_has_half_its_fall_over_the_mean() -> None:
    falling = torch.linspace(2.3, 0.003, 11, dtype=torch.float64)
    over_chord, over_mean, above = all_three(falling)
    assert above == 0
    assert over_chord == pytest.approx(0, abs=1e-12)
    assert over_mean == pytest.approx((2.3 - 0.003) / 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_point_that_is_not_finite_leaves_no_barrier(bad: float, place: int) -> None:
    curve = torch.arange(5.0)
    curve[place] = bad
    assert all(math.isnan(value) for value in all_three(curve))
    assert barrier(curve, alphas(5)).at == place


@given(st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), min_size=3, max_size=7))
def test_the_mean_of_the_paired_heights_is_the_barrier(by_batch: list[list[float]]) -> None:
    values = torch.tensor(by_batch, dtype=torch.float64)
    curve = values.mean(1)
    for height in (barrier(curve, alphas(len(curve))), barrier_mean(curve), rise_above_ends(curve)):
        assert float(height.paired(values).mean()) == pytest.approx(height.value, abs=1e-9)
