"""Head2Toe's selection against what is known of the features, and a linear head against a second library."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lightning_probes.functional.features.feature_selection import (
    FRACTIONS,
    RIDGES,
    Labelled,
    choose_head,
    select_features,
    unit_rows,
)
from lightning_probes.functional.features.linear_head import fit_head, smallest_silencing_lasso

CLASSES, WIDTH, LAYERS = 4, 40, 4


def layers(samples: int, seed: int, informative: int = 2) -> tuple[list[Tensor], Tensor]:
    """Layers of noise; the first features of one of them know the class. The share of features that do is 1/40."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (samples,), generator=draws)
    found = [torch.randn(samples, WIDTH, generator=draws, dtype=torch.float64) for _ in range(LAYERS)]
    found[informative][:, :CLASSES] += 2.5 * one_hot(labels, CLASSES)
    return found, labels


def labelled(samples: int, seed: int, informative: int = 2, factors: tuple[float, ...] = (1.0,) * LAYERS) -> Labelled:
    found, labels = layers(samples, seed, informative)
    rows = [unit_rows(factor * rows) for factor, rows in zip(factors, found, strict=True)]
    return Labelled(torch.cat(rows, 1), labels)


@pytest.mark.parametrize("informative", range(LAYERS))
@pytest.mark.parametrize("fraction", [0.025, 0.0125])
def test_kept_features_are_from_the_only_layer_that_knows_the_class(informative: int, fraction: float) -> None:
    samples = [labelled(400, 10 * informative + k, informative) for k in (0, 1)]

    kept = select_features(*samples, CLASSES, penalty=0.05, fractions=(fraction,)).kept

    assert len(kept) == fraction * LAYERS * WIDTH
    assert (kept // WIDTH == informative).double().mean() >= 0.9


def test_scale_of_a_layer_does_not_count() -> None:
    plain = select_features(labelled(400, 0), labelled(200, 1), CLASSES, penalty=0.05)
    scaled = select_features(
        labelled(400, 0, factors=(1, 100, 1, 1e-3)), labelled(200, 1, factors=(1, 100, 1, 1e-3)), CLASSES, penalty=0.05
    )

    assert torch.equal(plain.kept, scaled.kept)
    assert plain.fraction == scaled.fraction
    torch.testing.assert_close(scaled.relevance, plain.relevance, rtol=1e-6, atol=1e-9)


def test_permuted_features_are_permuted_in_the_selection() -> None:
    fitted, held_out = labelled(400, 0), labelled(200, 1)
    order = torch.randperm(LAYERS * WIDTH, generator=torch.Generator().manual_seed(0))

    plain = select_features(fitted, held_out, CLASSES, penalty=0.05)
    permuted = select_features(fitted.of(order), held_out.of(order), CLASSES, penalty=0.05)

    assert torch.equal(order[permuted.kept].sort().values, plain.kept)
    torch.testing.assert_close(permuted.relevance, plain.relevance[order], rtol=1e-6, atol=1e-9)


def test_fraction_one_without_penalty_is_the_head_on_all_features() -> None:
    fitted, held_out = labelled(400, 0), labelled(200, 1)

    selection = select_features(fitted, held_out, CLASSES, penalty=0, fractions=(1.0,))

    peer = LogisticRegression(C=1 / (400 * selection.chosen.ridge), tol=1e-8, max_iter=10000)
    peer.fit(fitted.features.numpy(), fitted.labels.numpy())
    logits = peer.decision_function(held_out.features.numpy())
    assert torch.equal(selection.kept, torch.arange(LAYERS * WIDTH))
    expected = torch.tensor(logits).log_softmax(1)
    # The residual of 5e-4 bounds the gradient; the weakest ridge allows no closer agreement of the logits.
    assert (selection(held_out.features).log_softmax(1) - expected).abs().max() < 0.05 * expected.abs().max()
    assert (selection(held_out.features).argmax(1) == torch.tensor(logits).argmax(1)).double().mean() > 0.98


@pytest.mark.parametrize("ridge", [1e-2, 1e-3])
def test_head_equals_logistic_regression_of_a_second_library(ridge: float) -> None:
    data = labelled(400, 0)

    head = fit_head(data.features, data.labels, CLASSES, ridge=ridge, tolerance=1e-8)

    peer = LogisticRegression(C=1 / (400 * ridge), tol=1e-10, max_iter=10000)
    peer.fit(data.features.numpy(), data.labels.numpy())
    torch.testing.assert_close(head.weights, torch.tensor(peer.coef_.T), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_conditions_of_the_group_lasso_hold_where_the_head_ends(share: float) -> None:
    data = labelled(400, 0)
    most = smallest_silencing_lasso(data.features, data.labels, CLASSES)

    head = fit_head(data.features, data.labels, CLASSES, lasso=share * most, tolerance=1e-6)

    weights, bias = (part.clone().requires_grad_() for part in (head.weights, head.bias))
    loss = cross_entropy(data.features @ weights + bias, data.labels)
    slopes, bias_slope = torch.autograd.grad(loss, (weights, bias))
    alive = head.relevance > 0
    directions = head.weights[alive] / head.weights[alive].norm(dim=1, keepdim=True)
    assert (slopes[alive] + share * most * directions).norm(dim=1).max() <= 2e-6 * most
    assert slopes[~alive].norm(dim=1).max() <= share * most * (1 + 1e-6)
    assert bias_slope.norm() <= 2e-6 * most
    assert 0 < alive.sum() < len(alive)
    assert (head.weights[~alive] == 0).all()


def test_smallest_silencing_lasso_is_the_edge_of_no_weights() -> None:
    data = labelled(400, 0)
    most = smallest_silencing_lasso(data.features, data.labels, CLASSES)

    alive = [
        int((fit_head(data.features, data.labels, CLASSES, lasso=share * most).relevance > 0).sum())
        for share in (1.001, 0.98)
    ]

    assert alive[0] == 0 < alive[1]


def test_residual_says_that_a_head_is_not_at_the_minimum() -> None:
    data = labelled(400, 0)

    assert fit_head(data.features, data.labels, CLASSES, ridge=1e-3).converged
    assert not fit_head(data.features, data.labels, CLASSES, ridge=1e-3, tolerance=math.inf).converged


def test_fraction_and_ridge_are_those_of_the_best_head_on_held_out_samples() -> None:
    fitted, held_out = labelled(120, 0), labelled(400, 1)

    selection = select_features(fitted, held_out, CLASSES, penalty=0.05)

    accuracies = [
        select_features(fitted, held_out, CLASSES, penalty=0.05, fractions=(fraction,)).chosen.accuracy
        for fraction in FRACTIONS
    ]
    assert selection.chosen.accuracy == max(accuracies)
    assert selection.fraction < 1  # all features over-fit, and the fitted samples would not show it
    everything = choose_head(fitted, fitted, CLASSES)
    assert everything.accuracy == 1
    assert selection.chosen.ridge in RIDGES


def test_rows_of_zeros_stay_zeros_and_long_rows_do_not_overflow() -> None:
    rows = torch.tensor([[0.0, 0.0], [3e30, 4e30], [3e-30, 4e-30]])

    torch.testing.assert_close(unit_rows(rows), torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, 0.8]]))


def test_one_class_needs_no_features() -> None:
    data = Labelled(torch.randn(20, 3), torch.zeros(20, dtype=torch.long))

    selection = select_features(data, data, 1, penalty=0.05, fractions=(0.5,))

    assert selection.kept.numel() == 0
    assert selection.chosen.accuracy == 1


def test_features_that_are_not_finite_give_an_infinite_residual_at_once() -> None:
    data = labelled(40, 0)
    data.features[3, 5] = math.nan

    head = fit_head(data.features, data.labels, CLASSES, ridge=1e-3)

    assert not head.converged
    assert head.steps < 100
    assert select_features(data, data, CLASSES, penalty=0.05).residual == math.inf
