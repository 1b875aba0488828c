from __future__ import annotations

from collections.abc import Mapping

import hessian_eigenthings
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_probes.functional.hutchinson import hutchinson_samples
from lightning_probes.functional.hvp import linearize
from lightning_probes.functional.parameter_vector import to_vector


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(size: int) -> Tensor:
    matrix = torch.randn(size, size, generator=rng(5), dtype=torch.float64)
    return matrix + matrix.T


def test_mean_is_the_trace_and_spread_is_that_of_theory() -> None:
    matrix, num_vectors = symmetric(20), 4000
    samples = hutchinson_samples(lambda v: matrix @ v, matrix[0], num_vectors, rng())
    variance = 2 * ((matrix**2).sum() - (matrix.diagonal() ** 2).sum())
    assert samples.shape == (num_vectors,)
    assert abs(samples.mean() - matrix.trace()) < 4 * (variance / num_vectors).sqrt()
    # The sample variance of k draws is itself known to about sqrt(2 / k), here 2 %.
    assert samples.var().item() == pytest.approx(variance.item(), rel=0.1)


def test_diagonal_matrix_has_no_spread() -> None:
    diagonal = torch.tensor([1.0, -2.0, 7.0])
    assert hutchinson_samples(lambda v: diagonal * v, diagonal, 5, rng()).tolist() == [6.0] * 5


def test_probe_vectors_are_independent_signs() -> None:
    seen: list[Tensor] = []
    hutchinson_samples(lambda v: seen.append(v) or v, torch.empty(50), 200, rng())  # type: ignore[func-returns-value]
    signs = torch.stack(seen)
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
    samples = hutchinson_samples(product, vector, 200, rng())
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
    wide = hutchinson_samples(lambda v: matrix @ v, matrix[0], 4, rng(3))
    narrow = hutchinson_samples(lambda v: matrix.float() @ v, matrix[0].float(), 4, rng(3))
    assert wide.tolist() == narrow.tolist()
    assert narrow.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_no_vectors_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_vectors must be at least 1, got 0"):
        hutchinson_samples(lambda v: v, torch.ones(2), 0, rng())
