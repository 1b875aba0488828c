"""Sums over queries, against closed forms and maps by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_probes.functional.features.attention_distance import Sums, distance_sums, grid_distances


def means(sums: Tensor) -> Tensor:
    return sums / sums[:, Sums.QUERIES, None]


def test_distances_on_a_grid_are_those_of_its_cells_in_the_order_of_an_image() -> None:
    distances = grid_distances((2, 3), spacing=2.0)
    assert distances[0].tolist() == pytest.approx([0, 2, 4, 2, 8**0.5, 20**0.5])
    assert torch.equal(distances, distances.T)


def test_uniform_attention_has_the_mean_distance_and_the_entropy_of_all_tokens() -> None:
    weights = torch.full((2, 3, 10, 10), 0.1)
    found = means(distance_sums(weights, None, grid_distances((10,), 4.0)))
    assert found[:, Sums.DISTANCE].tolist() == pytest.approx([13.2] * 3)
    assert found[:, Sums.UNIFORM].tolist() == pytest.approx([13.2] * 3)
    assert found[:, Sums.ENTROPY].tolist() == pytest.approx([math.log(10)] * 3)


def test_identity_has_no_distance_and_no_entropy() -> None:
    sums = distance_sums(torch.eye(9).expand(2, 1, 9, 9), None, grid_distances((3, 3)))
    assert sums[0, Sums.DISTANCE] == 0
    assert sums[0, Sums.ENTROPY] == 0
    assert sums[0, Sums.QUERIES] == 18


def test_a_causal_map_by_hand() -> None:
    weights = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]])[None, None]
    opened = torch.ones(3, 3, dtype=torch.bool).tril()[None]
    found = means(distance_sums(weights, opened, grid_distances((3,))))[0]
    assert float(found[Sums.DISTANCE]) == pytest.approx((0 + 0.25 + 2 * 0.5 + 0.25) / 3)
    assert float(found[Sums.UNIFORM]) == pytest.approx((0 + 1 / 2 + 3 / 3) / 3)


def test_a_causal_map_of_blocks_by_hand() -> None:
    block = torch.tensor([[1.0, 0], [0.5, 0.5]])
    weights = torch.block_diag(block, block)[None, None]
    opened = torch.block_diag(block, block)[None] > 0
    found = means(distance_sums(weights, opened, grid_distances((4,))))[0]
    assert float(found[Sums.DISTANCE]) == pytest.approx(0.25)
    assert float(found[Sums.UNIFORM]) == pytest.approx(0.25)


def test_leading_tokens_are_left_out_and_the_other_weights_renormalised() -> None:
    weights = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.4, 0.1], [0.9, 0.1, 0.0]])[None, None]
    found = means(distance_sums(weights, None, grid_distances((2,)), prefix=1))[0]
    assert float(found[Sums.QUERIES]) == 1
    assert float(found[Sums.DISTANCE]) == pytest.approx((0.2 + 1) / 2)
    assert float(found[Sums.PREFIX]) == pytest.approx(0.7)
    plain = means(distance_sums(weights, None, grid_distances((2,)), prefix=1, renormalize=False))[0]
    assert float(plain[Sums.DISTANCE]) == pytest.approx((0.1 + 0.1) / 2)


def test_padding_and_queries_without_keys_change_nothing() -> None:
    torch.manual_seed(0)
    inside = torch.rand(2, 2, 4, 4).softmax(-1)
    expected = distance_sums(inside, None, grid_distances((4,)))
    for left in (0, 2):  # padding at the end, then at the start; its queries attend to anything, or are nan
        weights, opened = torch.full((2, 2, 6, 6), 1 / 6), torch.zeros(2, 6, 6, dtype=torch.bool)
        weights[:, :, :2], kept = math.nan, slice(left, left + 4)
        weights[:, :, kept, :], opened[:, kept, kept] = 0, True
        weights[:, :, kept, kept] = inside
        found = distance_sums(weights, opened, grid_distances((6,)))
        assert torch.allclose(found, expected)


def test_a_network_that_is_not_finite_is_not_measured_as_if_it_were() -> None:
    weights = torch.full((2, 1, 3, 3), 1 / 3)
    weights[0] = math.nan
    assert distance_sums(weights, None, grid_distances((3,)))[0, Sums.DISTANCE].isnan()


def test_double_and_half_precision_are_measured() -> None:
    torch.manual_seed(0)
    weights = torch.rand(2, 2, 5, 5, dtype=torch.float64).softmax(-1)
    expected = distance_sums(weights, None, grid_distances((5,)))
    assert torch.allclose(distance_sums(weights.float(), None, grid_distances((5,))), expected)
    assert torch.allclose(distance_sums(weights.half(), None, grid_distances((5,))), expected, rtol=1e-2)
