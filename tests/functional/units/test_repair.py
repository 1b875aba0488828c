from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_probes.functional.units.repair import Spread, correction, folded


def outputs(seed: int, units: int = 6) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(50, units, generator=draws, dtype=torch.float64) * torch.arange(1, units + 1) + seed


def test_corrected_outputs_have_the_mean_and_spread_of_the_goal() -> None:
    now, goal = outputs(1), Spread.of(outputs(5))
    scale, shift = correction(Spread.of(now), goal)
    found = Spread.of(now * scale + shift)
    torch.testing.assert_close(found.mean, goal.mean)
    torch.testing.assert_close(found.std, goal.std)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
def test_constant_unit_is_shifted_and_not_scaled(value: float) -> None:
    now, goal = outputs(1), Spread.of(outputs(5))
    now[:, 2] = value
    scale, shift = correction(Spread.of(now), goal)
    assert scale[2] == 1
    assert float((now * scale + shift)[0, 2]) == pytest.approx(float(goal.mean[2]))


def test_outputs_that_have_the_goal_already_stay() -> None:
    spread = Spread.of(outputs(3))
    scale, shift = correction(spread, spread)
    torch.testing.assert_close(scale, torch.ones_like(scale), rtol=1e-12, atol=0)
    torch.testing.assert_close(shift, torch.zeros_like(shift), rtol=0, atol=1e-12)


def test_ends_of_the_interpolation_are_exact() -> None:
    here, there = Spread.of(outputs(1)), Spread.of(outputs(2))
    for alpha, end in ((0.0, here), (1.0, there)):
        found = here.towards(there, alpha)
        assert torch.equal(found.mean, end.mean)
        assert torch.equal(found.std, end.std)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(4, 6), (7, 4)), (nn.Conv2d(2, 6, 3), (3, 2, 5, 5)), (nn.Conv1d(2, 6, 3), (3, 2, 9))]
)
def test_folded_layer_returns_the_corrected_outputs(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer, inputs = layer.double(), torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.linspace(-1, 2, 6, dtype=torch.float64), torch.linspace(3, -3, 6, dtype=torch.float64)
    weight, bias = (parameter.detach() for parameter in (layer.weight, layer.bias))

    found = functional_call(
        layer, dict(zip(("weight", "bias"), folded(weight, bias, scale, shift), strict=True)), inputs
    )

    ones = [1] * (len(shape) - 2)
    expected = layer(inputs) * scale.reshape(6, *ones) + shift.reshape(6, *ones)
    torch.testing.assert_close(found, expected.detach())
