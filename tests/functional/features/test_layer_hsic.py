"""HSIC of layers from their features is what their Gram matrices give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_probes.functional.features.cka import linear_gram
from lightning_probes.functional.features.layer_hsic import (
    BatchHSIC,
    Layers,
    NarrowLayers,
    all_pairs,
    counterparts,
    features_are_cheaper,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(n: int, widths: list[int], seed: int) -> list[Tensor]:
    """With a mean far from zero."""
    source = generator(seed)
    return [3 + torch.randn(n, width, generator=source, dtype=torch.float64) for width in widths]


def in_both_forms(layers: list[Tensor]) -> tuple[Layers, Layers]:
    return torch.stack([linear_gram(layer) for layer in layers]), NarrowLayers.of(layers)


def assert_same(found: BatchHSIC, expected: BatchHSIC) -> None:
    assert found.samples == expected.samples
    for part, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(part, other, rtol=1e-9, atol=1e-9, equal_nan=True)


@settings(max_examples=50)
@given(
    n=st.integers(4, 30),
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    number=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_all_pairs_and_their_null_are_those_of_gram_matrices(n: int, widths: list[int], number: int, seed: int) -> None:
    grams, narrow = in_both_forms(features(n, widths, seed))
    found = all_pairs(narrow, generator(seed), number)
    assert found.cross.shape == (1 + number, len(widths), len(widths))
    assert_same(found, all_pairs(grams, generator(seed), number))


@given(n=st.integers(4, 30), widths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_counterparts_are_those_of_gram_matrices(n: int, widths: list[int], seed: int) -> None:
    (grams, narrow), (others, narrow_others) = (in_both_forms(features(n, widths, each)) for each in (seed, seed + 1))
    found = counterparts(narrow, narrow_others)
    assert found.cross.shape == (1, len(widths), 1, 1)
    assert_same(found, counterparts(grams, others))


def test_a_layer_that_is_not_finite_spoils_its_own_pairs_alone() -> None:
    layers = features(12, [2, 3, 2], seed=0)
    layers[1][4, 0] = torch.nan
    grams, narrow = in_both_forms(layers)
    found = all_pairs(narrow, generator(), 2)
    assert found.rows.isfinite().tolist() == [True, False, True]
    assert_same(found, all_pairs(grams, generator(), 2))


def test_a_constant_layer_has_no_similarity_at_all() -> None:
    layers = [torch.full((300, 3), 0.1), *features(300, [2], seed=0)]
    found = all_pairs(NarrowLayers.of(layers), generator(), 1)
    assert not found.cross[:, 0].any()
    assert found.rows[0] == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(5))
def test_a_layer_in_which_one_sample_alone_differs_has_none_either_but_for_rounding(seed: int, scale: float) -> None:
    """Its Gram matrix off the diagonal is the same for all pairs."""
    alone = torch.zeros(300, 3)
    alone[seed] = scale * torch.randn(3, generator=generator(seed))
    layers = NarrowLayers.of([alone, *features(300, [2], seed)])
    for found in (all_pairs(layers, generator(), 2), counterparts(layers, layers)):
        assert found.rows.flatten()[0] == 0
        assert found.rows.flatten()[1] > 0
        assert not found.cross[:, 0].any()
        assert found.cross[:, 1].any()


def test_single_precision_features_are_centred_in_double() -> None:
    layer = 1e4 + torch.randn(300, 3, generator=generator())
    exact = layer.double() - layer.double().mean(0)
    torch.testing.assert_close(NarrowLayers.of([layer]).features, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("forms", [(0, 1), (1, 0)], ids=["grams with features", "features with grams"])
def test_counterparts_in_unlike_forms_are_compared_as_grams(forms: tuple[int, int]) -> None:
    pairs = [in_both_forms(features(12, [2, 3], seed)) for seed in (0, 1)]
    found = counterparts(*(pair[form] for pair, form in zip(pairs, forms, strict=True)))
    assert_same(found, counterparts(pairs[0][0], pairs[1][0]))


@pytest.mark.parametrize("form", [0, 1], ids=["grams", "features"])
def test_fewer_than_four_samples_are_refused(form: int) -> None:
    layers = in_both_forms(features(3, [2], seed=0))[form]
    for compare in (lambda: all_pairs(layers, generator(), 1), lambda: counterparts(layers, layers)):
        with pytest.raises(ValueError, match="at least 4 samples in every micro-batch, found 3"):
            compare()


def test_features_are_for_many_samples_of_narrow_layers() -> None:
    assert features_are_cheaper([32] * 7, samples=1024)
    assert features_are_cheaper([32] * 150, samples=1024)
    assert not features_are_cheaper([22] * 150, samples=512)
    assert features_are_cheaper([4] * 3, samples=256)
    assert not features_are_cheaper([4] * 3, samples=255)
    assert not features_are_cheaper([32, 32, 4096, 10], samples=1024)
