"""The closed form of ridge regression, against explicit fits one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as TheirRidge
from sklearn.linear_model import RidgeCV
from torch import Tensor

from lightning_probes.functional.features.ridge import LAMBDAS, Ridge

SHAPES = [(60, 8), (40, 90), (30, 30), (25, 1)]


def problem(n: int, d: int, targets: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) @ torch.diag(0.9 ** torch.arange(d).double())
    return x + 5, torch.randn(n, targets, generator=generator, dtype=torch.float64) + x[:, :1]


def explicit(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights and offset of a fit with an offset, by a linear system."""
    centred = x - x.mean(0)
    weights = torch.linalg.solve(
        centred.mT @ centred + ridge * torch.eye(x.shape[1], dtype=x.dtype), centred.mT @ (y - y.mean(0))
    )
    return weights, y.mean(0) - x.mean(0) @ weights


@pytest.mark.parametrize("targets", [3, 20])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_leave_one_out_errors_equal_those_of_n_explicit_fits(n: int, d: int, targets: int) -> None:
    x, y = problem(n, d, targets)
    ridge = Ridge.of(x)
    errors = ridge.of_targets(y).leave_one_out()
    for k in (6, 9, 12, 16):
        constant = LAMBDAS[k] * n * ridge.scale.square()  # that of the fit to all samples
        total = 0.0
        for left_out in range(n):
            kept = torch.arange(n) != left_out
            weights, offset = explicit(x[kept], y[kept], float(constant))
            total += float((y[left_out] - x[left_out] @ weights - offset).square().sum())
        assert float(errors[k]) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 100.0])
def test_fit_equals_a_linear_system_and_scikit_learn(n: int, d: int, penalty: float) -> None:
    x, y = problem(n, d)
    ridge = Ridge.of(x)
    constant = float(penalty * n * ridge.scale.square())
    fit = ridge.of_targets(y).fit(penalty)
    weights, offset = explicit(x, y, constant)
    torch.testing.assert_close(fit.weights, weights, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fit.offset, offset, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ridge.of_targets(y).fitted(penalty), fit(x), rtol=1e-9, atol=1e-10)
    theirs = TheirRidge(alpha=constant).fit(x, y)
    np.testing.assert_allclose(fit(x), theirs.predict(x), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (40, 90)])
def test_chosen_penalty_is_that_of_scikit_learn(n: int, d: int) -> None:
    x, y = problem(n, d)
    ridge = Ridge.of(x)
    constants = [penalty * n * float(ridge.scale) ** 2 for penalty in LAMBDAS]
    theirs = RidgeCV(alphas=constants, store_cv_results=True).fit(x, y)
    errors = theirs.cv_results_.sum(axis=(0, 1))
    np.testing.assert_allclose(ridge.of_targets(y).leave_one_out(), errors, rtol=1e-7)
    assert ridge.of_targets(y).best_penalty() == LAMBDAS[int(errors.argmin())]


def test_many_targets_are_handled_in_parts_with_equal_results() -> None:
    x, y = problem(30, 4, targets=600)
    together = Ridge.of(x).of_targets(y).leave_one_out()
    parts = [Ridge.of(x).of_targets(part).leave_one_out() for part in torch.split(y, 100, 1)]
    torch.testing.assert_close(together, torch.stack(parts).sum(0), rtol=1e-12, atol=0)


def test_known_moments_give_the_same_fit() -> None:
    x, y = problem(60, 8)
    x = x - x.mean(0) + 0.01
    one, other = Ridge.of(x), Ridge.of(x, x.mT @ x)
    torch.testing.assert_close(one.of_targets(y).fit(0.01)(x), other.of_targets(y).fit(0.01)(x), rtol=1e-10, atol=1e-12)


def test_equal_rows_give_the_mean() -> None:
    x, y = torch.full((10, 3), 0.1, dtype=torch.float64), problem(10, 3)[1]
    ridge = Ridge.of(x).of_targets(y)
    assert torch.equal(ridge.fitted(1e-6), y.mean(0).expand(10, 3))
    assert ridge.fit(1e-6).weights.abs().max() == 0
