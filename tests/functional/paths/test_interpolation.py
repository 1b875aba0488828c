from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_probes.functional.paths.interpolation import (
    Rise,
    alphas,
    distance,
    lerp_params,
    max_rise,
    plateau_fraction,
)

LOSSES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12)


@given(st.integers(2, 500))
def test_alphas_are_even_and_their_ends_exact(num: int) -> None:
    grid = alphas(num)
    assert (len(grid), grid[0].item(), grid[-1].item()) == (num, 0.0, 1.0)
    torch.testing.assert_close(grid.diff(), torch.full((num - 1,), 1 / (num - 1), dtype=torch.float64))


@pytest.mark.parametrize("num", [-1, 0, 1])
def test_fewer_than_two_alphas_are_an_error(num: int) -> None:
    with pytest.raises(ValueError, match=f"num_alphas must be at least 2 .* got {num}"):
        alphas(num)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_ends_of_the_line_are_bit_identical(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start, end = ({"w": (1000 * torch.randn(999)).to(dtype)} for _ in range(2))
    for params in (start, end):
        params["w"][:2] = torch.tensor([-0.0, 1e-30]).to(dtype)
    for alpha, expected in ((0.0, start), (1.0, end)):
        assert torch.equal(lerp_params(start, end, alpha)["w"].view(torch.int16), expected["w"].view(torch.int16))


@given(st.floats(0, 1))
def test_points_between_are_the_convex_combination(alpha: float) -> None:
    torch.manual_seed(0)
    start, end = ({"w": torch.randn(2, 3, dtype=torch.float64)} for _ in range(2))
    torch.testing.assert_close(lerp_params(start, end, alpha)["w"], (1 - alpha) * start["w"] + alpha * end["w"])


def test_a_line_from_a_point_to_itself_stays_there() -> None:
    params = {"w": torch.randn(1000)}
    assert all(torch.equal(lerp_params(params, params, alpha)["w"], params["w"]) for alpha in alphas(7).tolist())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_counters_and_masks_are_those_of_the_end(alpha: float) -> None:
    start = {"batches": torch.tensor(0), "mask": torch.tensor([True, False]), "w": torch.zeros(1)}
    end = {"batches": torch.tensor(10), "mask": torch.tensor([False, False]), "w": torch.ones(1)}
    point = lerp_params(start, end, alpha)
    assert (point["batches"].item(), point["mask"].tolist()) == (10, [False, False])
    assert point["w"].item() == pytest.approx(alpha)


def test_start_of_another_dtype_is_brought_to_that_of_the_end() -> None:
    point = lerp_params({"w": torch.zeros(1, dtype=torch.bfloat16)}, {"w": torch.ones(1)}, 0.25)
    assert point["w"].dtype == torch.float32
    assert point["w"].item() == 0.25


def test_points_are_detached_from_the_parameters() -> None:
    params = dict(nn.Linear(2, 2).named_parameters())
    for alpha in (0.0, 0.5, 1.0):
        assert not any(tensor.requires_grad for tensor in lerp_params(params, params, alpha).values())


@pytest.mark.parametrize("function", [lambda a, b: lerp_params(a, b, 0.5), distance])
def test_other_names_or_shapes_are_an_error_that_names_them(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="only one of them has head"):
        function({"w": torch.zeros(2), "head": torch.zeros(1)}, {"w": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"'w' has shape \(2,\) in start and \(3,\) in end"):
        function({"w": torch.zeros(2)}, {"w": torch.zeros(3)})


def test_loss_of_linear_regression_along_the_line_is_its_closed_form() -> None:
    """L(alpha) = L* + (1 - alpha)^2 (L(0) - L*) from any start to the least-squares solution."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    start = {"w": torch.randn(4, dtype=torch.float64)}
    end = {"w": torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return ((inputs @ params["w"] - targets) ** 2).mean()

    curve = torch.stack([loss(lerp_params(start, end, alpha)) for alpha in alphas(11).tolist()])
    torch.testing.assert_close(curve, loss(end) + (1 - alphas(11)) ** 2 * (loss(start) - loss(end)))
    assert max_rise(curve).value == 0


def test_line_beyond_the_minimum_rises_by_its_closed_form() -> None:
    """From -1 to 3 on x^2: the minimum is at alpha 1/4, and the rise to the end is 9."""
    curve = [
        lerp_params({"x": torch.tensor([-1.0])}, {"x": torch.tensor([3.0])}, a)["x"] ** 2 for a in (0, 0.25, 0.5, 1)
    ]
    assert max_rise(torch.cat(curve)) == Rise(9.0, low=1, high=3)


@given(LOSSES)
@example([3.0, 2.0, 1.0, 1.5])
@example([1.0, 1.0])
@example([1.0])
def test_max_rise_equals_brute_force(losses: list[float]) -> None:
    rise = max_rise(losses)
    assert rise.value == max(losses[j] - losses[i] for j in range(len(losses)) for i in range(j + 1))
    assert rise.low <= rise.high
    assert losses[rise.high] - losses[rise.low] == rise.value


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 2.0, 1.0], Rise(0.0, 0, 0)),
        ([3.0, 1.0, 1.5, 0.5, 0.75], Rise(0.5, 1, 2)),
        ([3.0, 2.0, 1.0, 1.25], Rise(0.25, 2, 3)),
        ([1.0, 2.0, 0.0, 0.5], Rise(1.0, 0, 1)),
        ([2.0, 1.0, 1.5, 1.25, 3.0], Rise(2.0, 1, 4)),
    ],
    ids=["monotone", "bump", "last-interval", "first-interval", "through-a-dip"],
)
def test_max_rise_of_hand_made_curves(losses: list[float], expected: Rise) -> None:
    assert max_rise(losses) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_curve_with_a_loss_that_is_not_finite_has_no_rise_and_no_plateau(bad: float, at: int) -> None:
    losses = [3.0, 2.0, 1.0, 0.5]
    losses[at] = bad
    rise = max_rise(losses)
    assert math.isnan(rise.value)
    assert (rise.low, rise.high) == (at, at)
    assert math.isnan(plateau_fraction(losses))


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=12).filter(lambda losses: losses[0] > 0), st.floats(0, 1))
def test_plateau_fraction_equals_its_definition(losses: list[float], share: float) -> None:
    assert plateau_fraction(losses, share) == pytest.approx(sum(x > share * losses[0] for x in losses) / len(losses))


def test_plateau_fraction_is_undefined_from_a_first_loss_that_is_not_positive() -> None:
    assert math.isnan(plateau_fraction([-1.0, -2.0]))
    assert math.isnan(plateau_fraction([0.0, 0.0]))


@pytest.mark.parametrize("function", [max_rise, plateau_fraction])
@pytest.mark.parametrize("losses", [torch.zeros(0), torch.zeros(2, 2)])
def test_losses_that_are_no_curve_are_an_error(function: object, losses: Tensor) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="losses must be a vector"):
        function(losses)


def test_distance_equals_that_of_the_flat_vectors() -> None:
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 2)) for _ in range(2))
    start, end = (nn.utils.parameters_to_vector(model.parameters()).detach().double() for model in (first, second))
    moved, relative = distance(dict(first.named_parameters()), dict(second.named_parameters()))
    assert moved == pytest.approx((end - start).norm().item(), rel=1e-12)
    assert relative == pytest.approx(((end - start).norm() / start.norm()).item(), rel=1e-12)


def test_distance_accumulates_in_float64() -> None:
    """A float32 sum of squares is off by a thousandth here."""
    start = {"w": torch.zeros(1_000_001)}
    end = {"w": torch.full((1_000_001,), 1e-4)}
    end["w"][0] = 1
    step = end["w"][1].double().item()
    assert distance(start, end)[0] == pytest.approx(math.sqrt(1 + 1e6 * step**2), rel=1e-12)


def test_distance_in_half_precision_does_not_overflow_or_round() -> None:
    start, end = {"w": torch.full((4,), 300.0).half()}, {"w": torch.full((4,), -300.0).half()}
    assert distance(start, end) == (1200.0, 2.0)


def test_distance_counts_complex_weights_and_skips_counters() -> None:
    start = {"w": torch.zeros(1, dtype=torch.complex64), "steps": torch.tensor(0)}
    end = {"w": torch.tensor([3 + 4j], dtype=torch.complex64), "steps": torch.tensor(100)}
    assert distance(start, end)[0] == 5.0


def test_relative_distance_from_zero_is_infinite_and_from_zero_to_zero_undefined() -> None:
    zero, one = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert distance(zero, one)[1] == math.inf
    assert math.isnan(distance(zero, zero)[1])
