from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_probes.functional.curvature.hvp import gradient, hvp
from lightning_probes.functional.parameter_vector import to_vector
from lightning_probes.functional.paths.directions import random_direction
from lightning_probes.functional.paths.kinks import kink_gap

AT = {"w": torch.zeros(1, dtype=torch.float64)}
ALONG = {"w": torch.ones(1, dtype=torch.float64)}


def gap(loss: object, step: float) -> float:
    product = hvp(loss, AT, to_vector(ALONG))  # type: ignore[arg-type]
    return kink_gap(lambda params: gradient(loss, params)[1], product, AT, ALONG, step)  # type: ignore[arg-type]


def test_a_quadratic_has_no_gap_and_a_quartic_one_of_the_square_of_the_step() -> None:
    assert gap(lambda params: 3 * params["w"].square().sum(), 0.1) == pytest.approx(0.0, abs=1e-12)
    # gradient 2 w + 4 w^3, so its change over 2 e is 2 + 4 e^2
    for step in (0.1, 0.01):
        assert gap(lambda params: (params["w"] ** 2 + params["w"] ** 4).sum(), step) == pytest.approx(2 * step**2)


@pytest.mark.parametrize("step", [0.1, 0.01, 0.001])
def test_a_kink_within_the_step_adds_its_jump_over_two_steps_and_one_beyond_it_nothing(step: float) -> None:
    def loss(params: dict[str, Tensor]) -> Tensor:
        return (params["w"] ** 2 / 2 + 0.4 * torch.relu(params["w"] - 0.005)).sum()

    expected = 0.4 / (2 * step) if step > 0.005 else 0.0
    assert gap(loss, step) == pytest.approx(expected, abs=1e-12)


def test_without_curvature_the_gap_is_infinite_at_a_kink_and_undefined_elsewhere() -> None:
    assert math.isinf(gap(lambda params: torch.relu(params["w"] - 0.005).sum(), 0.1))
    assert math.isnan(gap(lambda params: params["w"].sum(), 0.1))


def test_a_network_of_relus_has_a_gap_at_a_small_step_and_a_smooth_one_almost_none() -> None:
    x = torch.randn(64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = (x @ torch.ones(6, dtype=torch.float64) > 0).long()
    found = {}
    for kind in (nn.ReLU, nn.Mish):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 32), kind(), nn.Linear(32, 32), kind(), nn.Linear(32, 2)).double()
        params = {name: p.detach() for name, p in net.named_parameters()}

        def loss(given: dict[str, Tensor], net: nn.Module = net) -> Tensor:
            return cross_entropy(torch.func.functional_call(net, given, (x,)), y)

        direction = random_direction(params, torch.Generator().manual_seed(1))
        full = {name: direction.get(name, torch.zeros_like(p)) for name, p in params.items()}
        product = hvp(loss, params, to_vector(full))  # type: ignore[arg-type]
        found[kind] = kink_gap(lambda given: gradient(loss, given)[1], product, params, direction, 1e-2)  # type: ignore[arg-type]
    assert found[nn.Mish] < 1e-2
    assert found[nn.ReLU] > 10 * found[nn.Mish]
