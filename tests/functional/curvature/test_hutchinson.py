from __future__ import annotations

from collections.abc import Mapping, Sequence

import hessian_eigenthings
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_probes.functional.curvature.hutchinson import (
    KnownDirections,
    ProjectedSigns,
    hutchinson_samples,
    random_signs,
)
from lightning_probes.functional.curvature.hvp import linearize
from lightning_probes.functional.parameter_vector import to_vector


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(size: int) -> Tensor:
    matrix = torch.randn(size, size, generator=rng(5), dtype=torch.float64)
    return matrix + matrix.T


def drawn(matrix: Tensor, num_vectors: int, sizes: Sequence[int] | None = None, seed: int = 0) -> Tensor:
    signs = random_signs(matrix[0], num_vectors, rng(seed))
    return hutchinson_samples(lambda v: matrix @ v, ProjectedSigns(signs, dtype=matrix.dtype), sizes)


def test_mean_is_the_trace_and_spread_is_that_of_theory() -> None:
    matrix, num_vectors = symmetric(20), 4000
    samples = drawn(matrix, num_vectors)
    variance = 2 * ((matrix**2).sum() - (matrix.diagonal() ** 2).sum())
    assert samples.shape == (num_vectors, 1)
    assert abs(samples.mean() - matrix.trace()) < 4 * (variance / num_vectors).sqrt()
    # The sample variance of k draws is itself known to about sqrt(2 / k), here 2 %.
    assert samples.var().item() == pytest.approx(variance.item(), rel=0.1)


def test_diagonal_matrix_has_no_spread() -> None:
    diagonal = torch.tensor([1.0, -2.0, 7.0])
    assert drawn(diagonal.diag(), 5).tolist() == [[6.0]] * 5
    assert drawn(diagonal.diag(), 5, sizes=[2, 1]).tolist() == [[-1.0, 7.0]] * 5


def test_mean_of_a_block_is_its_trace_and_the_blocks_add_up_to_the_whole() -> None:
    matrix, sizes, num_vectors = symmetric(20), [5, 0, 3, 12], 4000
    samples = drawn(matrix, num_vectors, sizes)
    torch.testing.assert_close(samples.sum(1, keepdim=True), drawn(matrix, num_vectors))
    expected = torch.stack([part.sum() for part in matrix.diagonal().split(sizes)])
    # Twice what the block gives alone, and once what is beside it in its rows.
    squares = [rows.square() for rows in (matrix - matrix.diagonal().diag()).split(sizes)]
    inside = [part.split(sizes, 1)[number].sum() for number, part in enumerate(squares)]
    variance = torch.stack([part.sum() + own for part, own in zip(squares, inside, strict=True)])
    assert ((samples.mean(0) - expected).abs() <= 4 * (variance / num_vectors).sqrt()).all()
    torch.testing.assert_close(samples.var(0), variance, rtol=0.1, atol=0)


def orthonormal(size: int, number: int) -> Tensor:
    columns: Tensor = torch.linalg.qr(torch.randn(size, number, generator=rng(6), dtype=torch.float64))[0]
    return columns.T


def test_known_directions_and_samples_of_the_rest_have_the_mean_and_spread_of_theory() -> None:
    matrix, sizes, num_vectors = symmetric(20), [5, 0, 15], 4000
    known = KnownDirections(lambda v: matrix @ v, sizes)
    assert known.directions is None
    for direction in orthonormal(20, 6):
        torch.testing.assert_close(known(direction), matrix @ direction)
    signs = random_signs(matrix[0], num_vectors, rng())
    vectors = ProjectedSigns(signs, known.directions, matrix.dtype)
    samples = hutchinson_samples(lambda v: matrix @ v, vectors, sizes)

    expected = torch.stack([part.sum() for part in matrix.diagonal().split(sizes)])
    standard_errors = samples.std(0) / num_vectors**0.5
    assert ((samples.mean(0) + known.trace - expected).abs() <= 4 * standard_errors).all()
    rest = torch.eye(20, dtype=torch.float64) - orthonormal(20, 6).T @ orthonormal(20, 6)
    left = rest @ matrix @ rest
    variance = 2 * ((left**2).sum() - (left.diagonal() ** 2).sum())
    assert samples.sum(1).var().item() == pytest.approx(variance.item(), rel=0.1)


def test_only_the_first_directions_are_remembered_and_all_are_multiplied() -> None:
    matrix = symmetric(6)
    known = KnownDirections(lambda v: matrix @ v, most=2)
    for direction in orthonormal(6, 4):
        torch.testing.assert_close(known(direction), matrix @ direction)
    torch.testing.assert_close(known.directions, orthonormal(6, 4)[:2])
    basis = orthonormal(6, 4)[:2]
    torch.testing.assert_close(known.trace, (basis @ matrix @ basis.T).trace().reshape(1))


def test_nothing_is_left_to_chance_once_the_directions_span_the_space() -> None:
    matrix = symmetric(6)
    known = KnownDirections(lambda v: matrix @ v)
    for direction in orthonormal(6, 6):
        known(direction)
    vectors = ProjectedSigns(random_signs(matrix[0], 5, rng()), known.directions, matrix.dtype)
    samples = hutchinson_samples(lambda v: matrix @ v, vectors)
    torch.testing.assert_close(samples, torch.zeros_like(samples))
    torch.testing.assert_close(known.trace, matrix.trace().reshape(1))


def test_probe_vectors_are_independent_signs() -> None:
    signs = random_signs(torch.empty(50), 200, rng()).float()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    # Correlations of 200 draws have standard deviation 1 / sqrt(200) = 0.07; 50 x 49 / 2 of them stay within 5.
    correlations = signs.T @ signs / 200 - torch.eye(50)
    assert correlations.abs().max() < 5 / 200**0.5
    assert signs.mean().abs() < 4 / 10_000**0.5


def test_trace_of_a_network_equals_that_of_the_explicit_hessian_and_of_hessian_eigenthings() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    batch = torch.randn(32, 4, dtype=torch.float64), torch.randint(3, (32,))
    params = dict(model.named_parameters())

    def loss(values: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, dict(values), (batch[0],)), batch[1])

    product, vector = linearize(loss, params), to_vector(params)
    hessian = torch.stack([product(unit) for unit in torch.eye(len(vector), dtype=torch.float64)])
    variance = 2 * ((hessian**2).sum() - (hessian.diagonal() ** 2).sum())
    vectors = ProjectedSigns(random_signs(vector, 200, rng()), dtype=vector.dtype)
    samples = hutchinson_samples(product, vectors).squeeze(1)
    standard_error = samples.std() / 200**0.5
    assert abs(samples.mean() - hessian.trace()) < 4 * standard_error
    assert standard_error.item() == pytest.approx((variance / 200).sqrt().item(), rel=0.2)

    peer = hessian_eigenthings.HessianOperator(
        model, [batch], lambda net, data: nn.functional.cross_entropy(net(data[0]), data[1])
    )
    other = hessian_eigenthings.trace(peer, num_matvecs=200, method="hutchinson", seed=0).estimate
    assert abs(samples.mean() - float(other)) < 4 * 2**0.5 * standard_error


def test_same_seed_gives_same_samples_in_any_dtype_and_leaves_the_global_generator_alone() -> None:
    matrix, state = symmetric(6).round(), torch.get_rng_state()
    wide, narrow = drawn(matrix, 4, seed=3), drawn(matrix.float(), 4, seed=3)
    assert wide.tolist() == narrow.tolist()
    assert narrow.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_no_vectors_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_vectors must be at least 1, got 0"):
        random_signs(torch.ones(2), 0, rng())
