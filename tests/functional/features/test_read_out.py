"""What is read off features: against explicit folds, scikit-learn, and labels that have nothing to do with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor
from torch.nn.functional import one_hot

from lightning_probes.functional.features.discriminant import discriminant
from lightning_probes.functional.features.read_out import FOLDS, folds_of, read_classes, read_values
from lightning_probes.functional.features.ridge import Ridge


def clusters(n: int, d: int, classes: int, distance: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Skewed features of clusters, as behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = distance * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return (centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)).relu(), labels


def folds(n: int, seed: int = 0) -> Tensor:
    return folds_of(torch.randperm(n, generator=torch.Generator().manual_seed(seed)))


def orders(n: int, number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(n, generator=generator) for _ in range(number)]


@pytest.mark.parametrize(("n", "d", "classes"), [(203, 12, 4), (60, 70, 4), (203, 3, 8)])
def test_accuracy_is_that_of_explicit_folds(n: int, d: int, classes: int) -> None:
    x, y = clusters(n, d, classes, distance=0.4)
    of, hits = folds(n), 0
    for fold in range(FOLDS):
        others = of != fold
        ridge = Ridge.of(x[others]).of_targets(one_hot(y[others], classes).double())
        penalty = ridge.best_penalty()
        scores, theirs = ridge.fit(penalty), LinearDiscriminantAnalysis(solver="lsqr")
        theirs.fit(scores(x[others]).numpy(), y[others].numpy())
        hits += int((theirs.predict(scores(x[~others]).numpy()) == y[~others].numpy()).sum())
    accuracy, error = read_classes(x, y, classes, of).tolist()
    assert accuracy == hits / n
    assert error == pytest.approx((accuracy * (1 - accuracy) / n) ** 0.5)


@pytest.mark.parametrize("classes", [2, 5])
def test_discriminant_decides_as_scikit_learn_does(classes: int) -> None:
    x, y = clusters(300, 6, classes)
    decide = discriminant(x, y, classes)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy())
    assert (decide(x).argmax(1).numpy() == theirs.predict(x.numpy())).all()
    ours = decide(x) - decide(x)[:, :1]
    if classes > 2:
        values = theirs.decision_function(x.numpy())
        np.testing.assert_allclose(ours.numpy(), values - values[:, :1], rtol=1e-6, atol=1e-7)


def test_classes_that_features_separate_without_any_spread_are_told_apart() -> None:
    y = torch.arange(100) % 4
    assert read_classes(one_hot(y, 4).double(), y, 4, folds(100))[0] == 1


@pytest.mark.parametrize(("n", "d", "classes"), [(1000, 40, 10), (1000, 3, 10), (300, 400, 10), (1000, 40, 2)])
def test_permuted_labels_with_their_own_penalties_give_chance(n: int, d: int, classes: int) -> None:
    x, y = clusters(n, d, classes)
    found = [float(read_classes(x, y[order], classes, folds(n))[0]) for order in orders(n, 6)]
    share = float(torch.bincount(y).max()) / n
    error = (share * (1 - share) / (6 * n)) ** 0.5
    assert 1 / classes - 4 * error < np.mean(found) < share + 4 * error


def test_null_is_the_accuracy_for_permuted_labels() -> None:
    x, y = clusters(500, 20, 5)
    accuracy, _, *null = read_classes(x, y, 5, folds(500), orders(500, 5)).tolist()
    assert accuracy > 0.6
    assert 0.1 < min(null) < max(null) < 0.3


def test_skewed_features_do_not_mask_a_class() -> None:
    """Where the largest value of a least squares fit leaves out the class in the middle."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 3
    x = y[:, None].double() + 0.1 * torch.randn(600, 1, generator=generator, dtype=torch.float64)
    by_largest = Ridge.of(x).of_targets(one_hot(y, 3).double()).fitted(1e-6).argmax(1)
    assert (by_largest == y).double().mean() < 0.7
    assert read_classes(x, y, 3, folds(600))[0] > 0.99


def test_accuracy_is_close_to_that_of_a_logistic_regression() -> None:
    x, y = clusters(1500, 30, 8, distance=0.6)
    theirs = cross_val_predict(LogisticRegression(C=0.1, max_iter=500), x.numpy(), y.numpy(), cv=FOLDS)
    logistic = float((theirs == y.numpy()).mean())
    accuracy, error = read_classes(x, y, 8, folds(1500)).tolist()
    assert abs(accuracy - logistic) < 4 * error


def test_rotated_scaled_and_shifted_features_give_the_same() -> None:
    x, y = clusters(300, 10, 4, distance=0.5)
    turn = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    assert torch.equal(read_classes(x, y, 4, folds(300)), read_classes(1e-3 * x @ turn + 7, y, 4, folds(300)))


@pytest.mark.parametrize("value", [0.0, 0.1, 3e20])
def test_equal_features_give_chance(value: float) -> None:
    y = torch.arange(103) % 3
    x = torch.full((103, 5), value, dtype=torch.float64)
    y[:40] = 1
    assert float(read_classes(x, y, 3, folds(103))[0]) == float((y == 1).double().mean())
    targets = torch.randn(103, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(read_values(x, targets, folds(103))[0]) == pytest.approx(0.0, abs=1e-12)


def test_what_is_not_finite_or_too_little_gives_nan() -> None:
    x, y = clusters(100, 4, 3)
    x[3, 2] = torch.inf
    assert read_classes(x, y, 3, folds(100), orders(100, 2)).isnan().tolist() == [True] * 4
    assert read_classes(x[4:12], y[4:12], 3, folds(8)).isnan().all()
    assert read_values(x, y[:, None].double(), folds(100)).isnan().all()


def test_explained_variance_is_that_of_explicit_folds() -> None:
    x, _ = clusters(150, 6, 3)
    noise = torch.randn(150, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.stack([x[:, 0], 100 * x[:, 1]], 1) + torch.tensor([0.5, 80.0], dtype=torch.float64) * noise
    of, errors, spread = folds(150), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for fold in range(FOLDS):
        others = of != fold
        ridge = Ridge.of(x[others]).of_targets(y[others] / y.std(0))
        fit = ridge.fit(ridge.best_penalty())
        errors += (y[~others] / y.std(0) - fit(x[~others])).square().sum(0)
        spread += ((y[~others] - y[others].mean(0)) / y.std(0)).square().sum(0)
    score, error, *null = read_values(x, y, of, orders(150, 3)).tolist()
    assert score == pytest.approx(float((1 - errors / spread).mean()), rel=1e-10)
    assert 0.4 < score < 0.9
    assert 0 < error < 0.1
    assert -0.2 < min(null) < max(null) < 0.1


def test_standard_error_of_explained_variance_is_that_of_repeated_data() -> None:
    scores, errors = [], []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(400, 2, generator=generator, dtype=torch.float64)
        y = x[:, :1] + torch.randn(400, 1, generator=generator, dtype=torch.float64)
        score, error = read_values(x, y, folds(400, seed)).tolist()
        scores.append(score)
        errors.append(error)
    assert np.std(scores) == pytest.approx(np.mean(errors), rel=0.35)  # four standard errors of a deviation of 60


def test_constant_columns_of_targets_do_not_count() -> None:
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = torch.ones(100, 1, dtype=torch.float64)
    both = read_values(x, torch.cat([x[:, :1], constant], 1), folds(100))
    torch.testing.assert_close(both, read_values(x, x[:, :1], folds(100)))
    assert read_values(x, constant, folds(100)).isnan().all()
