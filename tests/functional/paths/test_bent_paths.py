"""Paths round a barrier, on losses whose valleys are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_probes.functional.paths.bezier import Gradient, bend, bezier
from lightning_probes.functional.paths.polyline import arc_lengths, place_on
from lightning_probes.functional.paths.string import string


def slope_of(loss: Callable[[Tensor], Tensor]) -> Gradient:
    def gradient(x: Tensor, _: int) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(loss(x), x)[0]

    return gradient


def bowl(x: Tensor) -> Tensor:
    return x.square().sum() / 2


def double_well(x: Tensor) -> Tensor:
    """Minima at (-1, 0) and (1, 0); the saddle between them is at (0, 1), of height 1, and the chord's top is 4."""
    along, across = x
    return (along**2 - 1) ** 2 + 3 * (across - (1 - along**2)) ** 2


WELLS = torch.tensor([-1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)


def highest(points: list[Tensor], loss: Callable[[Tensor], Tensor]) -> float:
    return max(float(loss(place_on(points, k / 200))) for k in range(201))


def test_the_saddle_of_the_double_well_is_where_it_is_said_to_be() -> None:
    saddle = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert slope_of(double_well)(saddle, 0).abs().max() == 0
    eigenvalues = torch.linalg.eigvalsh(torch.func.hessian(double_well)(saddle))
    assert eigenvalues[0] < 0 < eigenvalues[1]
    assert float(double_well(saddle)) == 1


def test_the_string_finds_the_saddle_of_a_double_well() -> None:
    found = string(slope_of(double_well), lambda x: float(double_well(x)), *WELLS, steps=2000, lr=0.02)
    assert highest([*WELLS], double_well) == pytest.approx(4)
    assert highest(found.pivots, double_well) == pytest.approx(1, rel=0.05)
    assert highest(found.pivots, double_well) >= 1 - 1e-9  # no path lies below the saddle


def test_a_curve_finds_its_way_round_the_same_barrier() -> None:
    found = bend(slope_of(double_well), *WELLS, 2000, 0.02, torch.Generator().manual_seed(0))
    curve = [bezier(WELLS[0], found.theta, WELLS[1], k / 100) for k in range(101)]
    assert highest(curve, double_well) < 0.5 * highest([*WELLS], double_well)


def test_both_ends_are_the_given_ones_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 7, generator=generator)
    start[0] = -0.0
    strung = string(slope_of(bowl), lambda x: float(bowl(x)), start, end, steps=40, lr=0.1)
    bent = bend(slope_of(bowl), start, end, 40, 0.1, generator)
    ends = [(strung.pivots[0], start), (strung.pivots[-1], end)]
    ends += [(place_on(strung.pivots, 0.0), start), (place_on(strung.pivots, 1.0), end)]
    ends += [(bezier(start, bent.theta, end, 0.0), start), (bezier(start, bent.theta, end, 1.0), end)]
    for found, expected in ends:
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_in_a_bowl_the_control_point_stays_in_the_middle() -> None:
    start = torch.tensor([3.0, 1.0])
    found = bend(slope_of(bowl), start, -start, 400, 0.05, torch.Generator().manual_seed(0))
    assert found.theta.abs().max() < 1e-6


def test_equal_ends_are_no_division_by_zero() -> None:
    point = torch.ones(2)
    found = string(slope_of(bowl), lambda x: float(bowl(x)), point, point, steps=40, lr=0.1)
    bent = bend(slope_of(bowl), point, point, 40, 0.1, torch.Generator())
    assert torch.stack([*found.pivots, bent.theta]).isfinite().all()


def test_a_place_on_a_chain_divides_its_length() -> None:
    generator = torch.Generator().manual_seed(1)
    chain = [*torch.randn(5, 3, generator=generator, dtype=torch.float64)]
    total = float(arc_lengths(chain)[-1])
    for share in (0.1, 0.37, 0.5, 0.93):
        lengths = arc_lengths(chain).tolist()
        after = next(k for k, length in enumerate(lengths) if length > share * total)
        found = place_on(chain, share)
        assert float(arc_lengths([*chain[:after], found])[-1]) == pytest.approx(share * total)


def test_pivots_are_put_in_where_the_chain_is_high_and_counted() -> None:
    counted = {"gradients": 0, "heights": 0}

    def gradient(x: Tensor, k: int) -> Tensor:
        assert k == counted["gradients"]
        counted["gradients"] += 1
        return slope_of(double_well)(x, k)

    def height(x: Tensor) -> float:
        counted["heights"] += 1
        return float(double_well(x))

    found = string(gradient, height, *WELLS, steps=200, lr=0.02)
    assert len(found.pivots) > 5
    assert (found.gradients, found.heights) == (counted["gradients"], counted["heights"])
    straight = string(slope_of(bowl), lambda x: 0.0, *WELLS, steps=200, lr=0.0)
    assert len(straight.pivots) == 5
