from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from lightning_probes.functional.curvature.lanczos import Eigenpair, lanczos_top_eigenpair


def symmetric(spectrum: Tensor, seed: int = 0) -> Tensor:
    """A dense matrix with the given eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    size = len(spectrum)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=spectrum.dtype)).Q
    return (basis * spectrum) @ basis.T


def gaussian(size: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network_like(size: int = 2000) -> Tensor:
    """Spectrum like a trained net's: a bulk around zero, a few outliers, one negative edge (a diagonal matrix)."""
    spectrum = 0.05 * gaussian(size, seed=3)
    spectrum[:8] = torch.tensor([10, 8, 6, 4, 3, 2, 1, -2])
    return spectrum


def solve(matrix: Tensor, start: Tensor | None = None, **options: float) -> Eigenpair:
    """Lanczos on a matrix, or on a diagonal given as a vector."""
    matvec: Callable[[Tensor], Tensor] = (lambda v: matrix * v) if matrix.ndim == 1 else (lambda v: matrix @ v)
    start = gaussian(len(matrix), dtype=matrix.dtype) if start is None else start
    return lanczos_top_eigenpair(matvec, start, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_value_vector_and_residual_equal_those_of_the_explicit_matrix(dtype: torch.dtype, seed: int) -> None:
    matrix = symmetric(torch.cat([gaussian(60, seed).double(), torch.tensor([9.0, 7.0])]), seed).to(dtype)
    exact_values, exact_vectors = torch.linalg.eigh(matrix.double())
    pair = solve(matrix)
    assert pair.converged
    assert pair.value == pytest.approx(exact_values[-1].item(), rel=1e-5)
    assert abs(pair.vector.double() @ exact_vectors[:, -1]).item() > 1 - 1e-4
    assert pair.vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert pair.vector.dtype == dtype
    defect = matrix @ pair.vector - pair.value * pair.vector
    assert pair.residual == pytest.approx(defect.norm().item() / pair.value, rel=0.01, abs=1e-6)
    assert pair.residual <= 1e-3


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.floats(-8, 8), st.integers(0, 1000))
@example([0.0], 0.0, 0)
@example([0.5, 0.5, 0.5], 0.0, 0)
@example([-1.0, 0.25], 8.0, 0)
def test_small_matrices_are_exact_whatever_their_spectrum(spectrum: list[float], log_scale: float, seed: int) -> None:
    scale = 10**log_scale
    eigenvalues = scale * torch.tensor(spectrum, dtype=torch.float64)
    pair = solve(symmetric(eigenvalues, seed))
    assert pair.matvecs <= len(spectrum)
    assert pair.value == pytest.approx(eigenvalues.max().item(), rel=1e-3, abs=1e-12 * scale)


@given(st.floats(-8, 8))
def test_decisions_do_not_depend_on_the_scale_of_the_matrix(log_scale: float) -> None:
    scale, spectrum = 10**log_scale, network_like().float()
    reference, pair = solve(spectrum), solve(scale * spectrum)
    assert pair.matvecs == reference.matvecs
    assert pair.converged
    assert pair.value == pytest.approx(scale * reference.value, rel=1e-5)
    assert pair.residual == pytest.approx(reference.residual, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_the_length_of_the_start_does_not_matter(scale: float) -> None:
    spectrum = network_like().float()
    start = gaussian(2000, dtype=torch.float32)
    assert solve(spectrum, scale * start).value == pytest.approx(solve(spectrum, start).value, rel=1e-5)


def test_top_is_found_below_a_negative_eigenvalue_of_larger_magnitude() -> None:
    spectrum = network_like()
    spectrum[0] = -100
    assert solve(spectrum).value == pytest.approx(8, rel=1e-3)


def test_negative_definite_matrix_gives_its_eigenvalue_nearest_to_zero() -> None:
    pair = solve(symmetric(-torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)))
    assert pair.value == pytest.approx(-1)
    assert pair.converged


def test_eigenvalue_of_ten_million_parameters_is_as_exact_as_of_few() -> None:
    # One direction of all parameters, of which most weigh little, as a network's have it.
    direction = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0)).pow_(3)
    exact = direction.double().square().sum().item()

    found = lanczos_top_eigenpair(lambda v: direction * (direction.double() @ v.double()).float(), direction)

    assert found.value == pytest.approx(exact, rel=1e-5)
    assert found.vector.double().norm().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("multiplicity", [2, 5, 2000])
def test_repeated_top_eigenvalue_is_found_with_one_of_its_vectors(multiplicity: int) -> None:
    spectrum = network_like()
    spectrum[:multiplicity] = 10
    pair = solve(spectrum)
    assert pair.converged
    assert pair.value == pytest.approx(10, rel=1e-3)
    assert pair.vector[:multiplicity].norm().item() == pytest.approx(1, abs=1e-4)


def test_invariant_space_ends_the_iteration_early() -> None:
    spectrum = torch.zeros(1000)
    spectrum[:3] = torch.tensor([5.0, 3.0, -7.0])
    pair = solve(spectrum)
    assert pair.matvecs <= 5  # three eigenvalues and zero; one more where rounding hides that it is done
    assert pair.converged
    assert pair.value == pytest.approx(5, rel=1e-5)


def test_multiple_of_the_identity_takes_one_product() -> None:
    pair = solve(torch.full((500,), 3.0))
    assert (pair.matvecs, pair.converged) == (1, True)
    assert pair.value == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_zero_matrix_has_eigenvalue_zero_with_residual_zero(size: int) -> None:
    pair = solve(torch.zeros(size))
    assert (pair.value, pair.residual, pair.matvecs, pair.converged) == (0, 0, 1, True)


def test_top_eigenvalue_zero_of_an_other_matrix_is_not_called_converged() -> None:
    """No relative accuracy can be given for zero."""
    pair = solve(symmetric(torch.tensor([0.0, -1.0, -2.0, -4.0])))
    assert abs(pair.value) < 1e-6
    assert not pair.converged


def test_matvecs_are_capped_and_an_unfinished_run_says_so() -> None:
    spectrum = torch.linspace(0, 1, 2000)
    pair = solve(spectrum, max_matvecs=10)
    assert (pair.matvecs, pair.converged) == (10, False)
    assert pair.residual > 1e-3
    assert 0.9 < pair.value < 1


def test_smaller_tolerance_takes_more_products_and_reaches_it() -> None:
    spectrum = network_like()
    loose, tight = solve(spectrum, tolerance=1e-2), solve(spectrum, tolerance=1e-8)
    assert loose.matvecs < tight.matvecs
    assert tight.residual <= 1e-8
    assert tight.value == pytest.approx(10, rel=1e-14)


def test_directions_stay_orthonormal_long_after_convergence() -> None:
    """Without reorthogonalisation they do not, copies of converged eigenvalues appear, and the residual goes astray."""
    matrix = symmetric(torch.cat([torch.linspace(0, 1, 90), torch.tensor([1e3, 1e2])]).double()).float()
    directions: list[Tensor] = []

    def matvec(vector: Tensor) -> Tensor:
        directions.append(vector.double())
        return matrix @ vector

    pair = lanczos_top_eigenpair(matvec, gaussian(92).float(), max_matvecs=80, tolerance=0)
    gram = torch.stack(directions) @ torch.stack(directions).T
    assert len(directions) == pair.matvecs == 80
    assert (gram - torch.eye(80)).abs().max() < 1e-6
    assert pair.value == pytest.approx(1e3, rel=1e-6)


def test_matrix_that_requires_grad_is_no_obstacle() -> None:
    matrix = torch.diag(torch.tensor([1.0, 3.0])).requires_grad_()
    pair = lanczos_top_eigenpair(lambda v: matrix @ v, torch.ones(2))
    assert pair.value == pytest.approx(3)
    assert not pair.vector.requires_grad


@pytest.mark.parametrize("drift", [0.0, 0.1, 0.5])
def test_warm_start_needs_fewer_products_than_a_random_start(drift: float) -> None:
    spectrum = network_like()
    warm = drift * gaussian(2000, seed=9) / 2000**0.5
    warm[0] += 1
    cold_pair, warm_pair = solve(spectrum), solve(spectrum, warm)
    assert warm_pair.value == pytest.approx(10, rel=1e-5)
    assert warm_pair.matvecs < cold_pair.matvecs


@pytest.mark.parametrize("index", range(1, 8))
def test_warm_start_at_another_eigenvector_still_finds_the_top(index: int) -> None:
    spectrum = network_like()
    start = torch.zeros(2000, dtype=torch.float64)
    start[index] = 1
    pair = solve(spectrum, start)
    assert pair.converged
    assert pair.value == pytest.approx(10, rel=1e-3)


def test_same_start_gives_same_result_and_leaves_the_global_generator_alone() -> None:
    spectrum, state = network_like(), torch.get_rng_state()
    first, second = solve(spectrum), solve(spectrum)
    assert first.value == second.value
    assert torch.equal(first.vector, second.vector)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 4])
def test_product_that_is_not_finite_gives_nan_and_a_start_for_next_time(bad: float, at: int) -> None:
    spectrum, calls = network_like(), iter(range(1, 100))
    pair = lanczos_top_eigenpair(lambda v: spectrum * v * (bad if next(calls) == at else 1), gaussian(2000))
    assert math.isnan(pair.value)
    assert math.isnan(pair.residual)
    assert (pair.matvecs, pair.converged) == (at, False)
    assert pair.vector.norm().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (torch.zeros(3), "not zero"),
        (torch.tensor([1.0, math.nan, 0.0]), "finite"),
        (torch.tensor([1.0, -math.inf, 0.0]), "finite"),
        (torch.ones(3, 1), r"start must be a vector .* shape \(3, 1\)"),
        (torch.ones(0), "at least one element"),
    ],
)
def test_useless_start_is_an_error(start: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lanczos_top_eigenpair(lambda v: v, start)


def test_max_matvecs_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_matvecs must be at least 1, got 0"):
        lanczos_top_eigenpair(lambda v: v, torch.ones(2), max_matvecs=0)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_single_number_is_its_own_eigenvalue_from_either_side(sign: float) -> None:
    pair = lanczos_top_eigenpair(lambda v: 3 * v, torch.tensor([sign]))
    assert pair.value == 3
    assert pair.vector.abs().tolist() == [1]
    assert pair.converged


def test_matvec_that_returns_its_argument_does_not_corrupt_the_basis() -> None:
    assert lanczos_top_eigenpair(lambda v: v, torch.ones(5)).value == pytest.approx(1)
