from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_probes.functional.paths.directions import filter_normalised, random_direction


def params(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5)).to(dtype)
    return {name: p.detach() for name, p in net.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_filter_of_a_direction_is_as_long_as_that_of_the_parameters(dtype: torch.dtype) -> None:
    found, given = random_direction(params(dtype)), params(dtype)
    for name, direction in found.items():
        assert direction.dtype == dtype
        expected = given[name].flatten(1).norm(dim=1)
        assert torch.allclose(direction.flatten(1).norm(dim=1), expected, rtol=1e-6)


def test_biases_and_scales_of_normalisation_layers_do_not_move() -> None:
    assert set(random_direction(params())) == {"0.weight", "3.weight"}


def test_a_direction_is_gaussian_within_a_filter() -> None:
    wide = {"weight": torch.randn(4, 100_000)}
    filters = random_direction(wide, torch.Generator().manual_seed(1))["weight"]
    scaled = filters / filters.std(dim=1, keepdim=True)
    assert scaled.mean(1).abs().max() < 0.02
    assert (scaled**4).mean(1) == pytest.approx(3.0, abs=0.1)
    first, second = filters[0], random_direction(wide, torch.Generator().manual_seed(2))["weight"][0]
    assert abs(float(nn.functional.cosine_similarity(first, second, 0))) < 0.02


def test_one_seed_gives_one_direction_which_follows_the_length_of_the_filters() -> None:
    given = params()
    grown = {name: 3 * p for name, p in given.items()}
    first, again = (random_direction(each, torch.Generator().manual_seed(7)) for each in (given, grown))
    assert all(torch.allclose(3 * first[name], again[name]) for name in first)


@pytest.mark.parametrize("weight", [torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(3, 0), torch.ones(2, 1, 1)])
def test_filters_of_zeros_stay_and_empty_ones_are_nothing_special(weight: Tensor) -> None:
    found = random_direction({"weight": weight})["weight"]
    assert found.shape == weight.shape
    assert torch.allclose(found.abs(), weight)


def test_a_direction_that_is_zero_in_a_filter_stays_zero_there() -> None:
    assert torch.equal(filter_normalised({"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2)})["w"], torch.zeros(2, 2))


def test_complex_and_half_precision_filters_keep_their_dtype_and_length() -> None:
    for dtype, tolerance in ((torch.complex64, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)):
        weight = torch.randn(3, 50, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
        found = random_direction({"weight": weight})["weight"]
        assert found.dtype == dtype
        wide = torch.complex64 if dtype.is_complex else torch.float32
        assert torch.allclose(found.to(wide).norm(dim=1), weight.to(wide).norm(dim=1), rtol=tolerance)
