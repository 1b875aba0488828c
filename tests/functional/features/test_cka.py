from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_probes.functional.features.cka import (
    centre,
    hsic,
    linear_gram,
    normalize_hsic,
    self_hsic,
    shuffled_null,
    u_center,
    unbiased_cka,
)

seeds = st.integers(0, 2**31)
sizes = st.integers(4, 12)
widths = st.integers(1, 40)  # narrower and wider than the batch is long


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def golden_features() -> tuple[Tensor, Tensor]:
    """The features of the demo notebook that came with arXiv:1905.00414."""
    random = np.random.RandomState(1337)
    x = random.randn(100, 10)
    return torch.from_numpy(x), torch.from_numpy(random.randn(100, 10) + x)


def biased_cka(x: Tensor, y: Tensor) -> float:
    k, l = linear_gram(x), linear_gram(y)  # noqa: E741
    return ((k * l).sum() / (k.norm() * l.norm())).item()


def hsic_by_formula(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """HSIC_1 as Song et al. 2012 write it, for raw Grams."""
    n = len(k)
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    product = k @ l
    square = product.trace() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * product.sum() / (n - 2)
    return (square / (n * (n - 3))).item()


def hsic_of_pair(x: Tensor, y: Tensor) -> float:
    return hsic(u_center(linear_gram(x))[None], u_center(linear_gram(y))[None]).item()


def test_golden_values_of_the_reference_notebook():
    x, y = golden_features()
    assert unbiased_cka(x, y).item() == pytest.approx(0.51346, abs=5e-6)
    assert biased_cka(x, y) == pytest.approx(0.55761, abs=5e-6)


@given(n=sizes, width=widths, other_width=widths, seed=seeds)
@settings(max_examples=50)
def test_hsic_equals_the_direct_formula_for_layers_of_any_width(n: int, width: int, other_width: int, seed: int):
    x, y = randn(n, width, seed=seed), randn(n, other_width, seed=seed + 1)
    assert hsic_of_pair(x, y) == pytest.approx(hsic_by_formula(x @ x.T, y @ y.T), rel=1e-9, abs=1e-9)


def test_hsic_equals_its_definition_as_a_mean_over_distinct_quadruples():
    x, y = randn(6, 3, seed=0), randn(6, 2, seed=1)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    kernel = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert hsic_of_pair(x, y) == pytest.approx(torch.stack(kernel).mean().item(), rel=1e-10)


def test_mean_of_hsic_over_all_batches_is_hsic_of_the_whole():
    x, y = randn(8, 5, seed=0), randn(8, 5, seed=0) + randn(8, 5, seed=1)
    batches = [list(batch) for batch in itertools.combinations(range(8), 5)]
    mean = np.mean([hsic_of_pair(x[batch], y[batch]) for batch in batches])
    assert mean == pytest.approx(hsic_of_pair(x, y), rel=1e-10)


def test_hsic_of_stacks_equals_hsic_pair_by_pair():
    layers = [randn(9, width, seed=width) for width in (2, 5, 30)]
    grams = torch.stack([u_center(linear_gram(layer)) for layer in layers])
    expected = [[hsic_by_formula(x @ x.T, y @ y.T) for y in layers[:2]] for x in layers]
    torch.testing.assert_close(hsic(grams, grams[:2]), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(self_hsic(grams), hsic(grams, grams).diagonal())
    torch.testing.assert_close(hsic(grams[:, None], grams[:, None])[:, 0, 0], self_hsic(grams))


def test_hsic_refuses_different_samples():
    with pytest.raises(ValueError, match="rows have 5 and columns 6"):
        hsic(torch.zeros(1, 5, 5), torch.zeros(1, 6, 6))


@given(n=sizes, width=st.integers(2, 40), seed=seeds, scale=st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_cka_is_invariant_to_rotation_scale_and_shift(n: int, width: int, seed: int, scale: float):
    x, y = randn(n, width, seed=seed), randn(n, 7, seed=seed + 1)
    rotation = torch.linalg.qr(randn(width, width, seed=seed + 2)).Q
    moved = scale * x @ rotation + 10 * randn(1, width, seed=seed + 3)
    torch.testing.assert_close(unbiased_cka(moved, y), unbiased_cka(x, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(unbiased_cka(x, moved), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-6)


def test_cka_is_not_invariant_to_a_general_linear_map():
    x = randn(50, 5, seed=0)
    stretch = torch.tensor([10.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert unbiased_cka(x, x * stretch).item() < 0.7


@pytest.mark.parametrize("width", [10, 100, 1000, 10000])
def test_independent_layers_have_cka_near_zero_whatever_their_width(width: int):
    x, y = randn(100, width, seed=0), randn(100, width, seed=1)
    assert abs(unbiased_cka(x, y).item()) < 0.05
    assert biased_cka(x, y) > 0.05  # what the unbiased estimator is for


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_the_gram_of_the_same_numbers_in_float32(dtype: torch.dtype):
    features = (300 * randn(16, 100, seed=0)).to(dtype)  # squared norms overflow float16
    assert linear_gram(features).dtype == torch.float32
    assert torch.equal(linear_gram(features), linear_gram(features.float()))


def test_gram_is_not_formed_in_low_precision_under_autocast():
    features = randn(16, 100, seed=0).float()
    with torch.autocast("cpu", torch.bfloat16):
        gram = linear_gram(features)
    assert torch.equal(gram, linear_gram(features))


def test_large_common_mean_does_not_cancel_in_the_gram():
    features = (64 * randn(16, 100, seed=0)).round().float() / 64  # exact in float32 also after the shift
    torch.testing.assert_close(linear_gram(features + 4096), linear_gram(features), rtol=0, atol=1e-3)


def test_gram_of_float64_features_is_float64_and_differentiable():
    features = randn(5, 3, seed=0).requires_grad_()
    assert torch.autograd.gradcheck(linear_gram, features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3])
def test_constant_layer_has_no_cka(value: float, dtype: torch.dtype):
    constant = torch.full((100, 7), value, dtype=dtype)
    assert not linear_gram(constant).any()
    assert unbiased_cka(constant, randn(100, 3, seed=0)).isnan()
    assert unbiased_cka(constant, constant).isnan()


def test_u_centred_matrices_have_zero_diagonal_and_zero_sums_and_stay_as_they_are():
    grams = torch.stack([linear_gram(randn(7, 3, seed=seed)) for seed in range(4)]).reshape(2, 2, 7, 7)
    centred = u_center(grams + 5)
    zeros = torch.zeros(2, 2, 7, dtype=torch.float64)
    assert torch.equal(centred.diagonal(dim1=-2, dim2=-1), zeros)
    torch.testing.assert_close(centred.sum(-1), zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close(u_center(centred), centred, rtol=0, atol=1e-12)
    torch.testing.assert_close(centred[1, 0], u_center(grams[1, 0]))


def test_u_centring_works_in_float64():
    assert u_center(torch.eye(4)).dtype == torch.float64


def test_u_centring_needs_four_samples():
    with pytest.raises(ValueError, match=r"at least 4 samples.*found 3.*micro_batch_size"):
        u_center(torch.eye(3))


@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_u_centring_needs_square_matrices(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"\(\.\.\., n, n\)"):
        u_center(torch.zeros(shape))


def test_normalised_hsic_is_a_ratio_of_sums_and_may_be_negative():
    cka = normalize_hsic(torch.tensor([[6.0, -1.0]]), torch.tensor([4.0]), torch.tensor([9.0, 1.0]))
    assert torch.equal(cka, torch.tensor([[1.0, -0.5]]))


def test_shuffled_null_is_hsic_with_permuted_samples_shared_by_all_columns():
    x, y, z = randn(10, 4, seed=0), randn(10, 6, seed=1), randn(10, 2, seed=2)
    centred_gram = lambda features: u_center(linear_gram(features))  # noqa: E731
    rows, columns = centred_gram(x)[None], torch.stack([centred_gram(y), centred_gram(z)])
    null = shuffled_null(rows, columns, torch.Generator().manual_seed(3), num_permutations=2)
    generator = torch.Generator().manual_seed(3)
    for draw in null:
        order = torch.randperm(10, generator=generator)
        expected = hsic(rows, torch.stack([centred_gram(y[order]), centred_gram(z[order])]))
        torch.testing.assert_close(draw, expected)


def test_shuffled_null_has_mean_zero_and_excludes_related_but_covers_unrelated_layers():
    x, unrelated = randn(32, 4, seed=0), randn(32, 6, seed=5)
    rows = u_center(linear_gram(x))[None]
    columns = torch.stack([u_center(linear_gram(x + randn(32, 4, seed=1))), u_center(linear_gram(unrelated))])
    null = shuffled_null(rows, columns, torch.Generator().manual_seed(0), num_permutations=1000)[:, 0]
    assert (null.mean(0).abs() < 4 * null.std(0) / 1000**0.5).all()
    related, other = hsic(rows, columns)[0]
    assert related > null[:, 0].max()
    assert null[:, 1].quantile(0.025) < other < null[:, 1].quantile(0.975)


def test_shuffled_null_draws_from_its_generator_alone():
    before = torch.get_rng_state()
    grams = u_center(linear_gram(randn(8, 3, seed=0)))[None]
    shuffled_null(grams, grams, torch.Generator().manual_seed(0), num_permutations=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [5, 64, 4001])
def test_centred_features_are_exactly_zero_where_all_are_equal_and_have_no_mean(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    constant = 10 * torch.randn(50, generator=generator, dtype=dtype)
    varying = torch.randn(n, 50, generator=generator, dtype=dtype) + 100
    varying[0] += 1000  # the first sample is far from all others
    centred = centre(torch.cat([constant.expand(n, 50), varying], 1))
    assert (centred[:, :50] == 0).all()
    exact = varying.double() - varying.double().mean(0)
    torch.testing.assert_close(centred[:, 50:].double(), exact, rtol=1e-6, atol=2e3 * torch.finfo(dtype).eps)
