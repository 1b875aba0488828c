from __future__ import annotations

import logging

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_probes import EveryNSteps, FisherTrace, Flag
from tests.callbacks.models import Supervised, classification, explicit_hessian, loader, trainer


def softmax_regression() -> Supervised:
    torch.manual_seed(1)
    return Supervised(nn.Linear(4, 3))


def closed_form(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(|x|^2 + 1)(1 - sum p^2) of each sample."""
    p = module(x).softmax(-1).detach().double()
    return (x.double().square().sum(1) + 1) * (1 - p.square().sum(1))


def test_exact_trace_and_its_error_equal_closed_form_for_softmax_regression() -> None:
    x, y = classification()
    module = softmax_regression()
    result = FisherTrace(labels="exact").evaluate(module, loader(x, y))["fisher/trace"]
    expected = closed_form(module, x)
    assert result.value == pytest.approx(float(expected.mean()), rel=1e-5)
    assert result.standard_error == pytest.approx(float(expected.std() / 8), rel=1e-5)


def test_sampled_trace_is_within_four_standard_errors_of_exact() -> None:
    x, y = classification(samples=512)
    module = softmax_regression()
    for seed in range(5):
        sampled = FisherTrace(seed=seed).evaluate(module, loader(x, y))["fisher/trace"]
        assert abs(sampled.value - float(closed_form(module, x).mean())) < 4 * sampled.standard_error


def test_trace_equals_hessian_trace_on_a_relu_network() -> None:
    x, y = classification()
    torch.manual_seed(0)
    module = Supervised(nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)))
    trace = float(explicit_hessian(module, lambda: cross_entropy(module(x), y)).trace())
    assert FisherTrace(labels="exact").evaluate(module, loader(x, y))["fisher/trace"].value == pytest.approx(
        trace, rel=1e-4
    )


def test_empirical_trace_is_the_mean_squared_gradient_norm_under_a_key_of_its_own() -> None:
    x, y = classification()
    module = softmax_regression()
    norms = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(cross_entropy(module(x[i : i + 1]), y[i : i + 1]), list(module.parameters()))
        norms.append(sum(float(g.square().sum()) for g in gradients))
    results = FisherTrace(labels="empirical").evaluate(module, loader(x, y))
    assert results["fisher/empirical_trace"].value == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    assert "fisher/trace" not in results


def test_likelihood_alone_counts_not_class_weights_or_label_smoothing() -> None:
    x, y = classification()
    plain = softmax_regression()
    weighted = Supervised(plain.net, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 9.0]), label_smoothing=0.3))
    a, b = (FisherTrace(labels="exact").evaluate(m, loader(x, y)) for m in (plain, weighted))
    assert a["fisher/trace"].value == b["fisher/trace"].value
    assert b["fisher/loss"].value == pytest.approx(float(cross_entropy(plain(x), y)), rel=1e-5)


def test_gaussian_likelihood_equals_closed_form_for_linear_regression() -> None:
    x = torch.randn(64, 4)
    module = Supervised(nn.Linear(4, 2), nn.functional.mse_loss)
    result = FisherTrace(labels="exact", likelihood="gaussian").evaluate(module, loader(x, torch.randn(64, 2)))
    assert result["fisher/trace"].value == pytest.approx(float((2 * (x.square().sum(1) + 1)).mean()), rel=1e-5)


def test_bernoulli_likelihood_equals_closed_form_for_logistic_regression() -> None:
    x = torch.randn(64, 4)
    module = Supervised(nn.Linear(4, 3), nn.functional.binary_cross_entropy_with_logits)
    p = module(x).sigmoid().detach()
    expected = ((x.square().sum(1) + 1) * (p * (1 - p)).sum(1)).mean()
    targets = torch.randint(0, 2, (64, 3)).float()
    result = FisherTrace(labels="exact", likelihood="bernoulli").evaluate(module, loader(x, targets))
    assert result["fisher/trace"].value == pytest.approx(float(expected), rel=1e-5)


def test_layers_add_up_to_the_trace() -> None:
    x, y = classification()
    module = Supervised(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    results = FisherTrace(per_layer=True).evaluate(module, loader(x, y))
    parts = [results["fisher/layer/net/0"].value, results["fisher/layer/net/2"].value]
    assert sum(parts) == pytest.approx(results["fisher/trace"].value, rel=1e-6)


def test_exact_trace_does_not_depend_on_micro_batches() -> None:
    x, y = classification(samples=50)
    values = [
        FisherTrace(labels="exact", micro_batch_size=size)
        .evaluate(softmax_regression(), loader(x, y))["fisher/trace"]
        .value
        for size in (1, 7, 50)
    ]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_debug_log_says_which_way_each_layer_goes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="lightning_probes"):
        FisherTrace().evaluate(softmax_regression(), loader(*classification()))
    assert any("net (Linear)" in record.message and "rule" in record.message for record in caplog.records)


def test_explosion_is_flagged_and_the_maximum_is_summary_only() -> None:
    # A first step away from a nearly uniform prediction is a step towards larger gradients of the features.
    x, y = classification()
    module = Supervised(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)))
    probe = FisherTrace(explosion_factor=1.01, schedule=EveryNSteps(1))
    trainer(max_epochs=20, callbacks=[probe]).fit(module, loader(x, y))
    traces = [entry["fisher/trace"] for entry in probe.history]
    assert probe.summary["fisher/trace_max"] == max(traces)
    assert probe.summary["fisher/explosion_ratio"] == pytest.approx(max(traces) / traces[0])
    assert [entry["fisher/flag/explosion"] for entry in probe.history] == [float(t > 1.01 * traces[0]) for t in traces]
    assert any(t > 1.01 * traces[0] for t in traces)
    assert "fisher/trace_max" not in probe.history[-1]
    assert isinstance(probe.results["fisher/flag/explosion"], Flag)


def test_exact_labels_of_sequences_are_refused_with_the_argument_to_set() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    module = Supervised(net, lambda logits, y: cross_entropy(logits.flatten(0, 1), y.flatten()))
    tokens = torch.randint(0, 5, (8, 6))
    with pytest.raises((ValueError, MisconfigurationException), match="labels"):
        FisherTrace(labels="exact").evaluate(module, loader(tokens, tokens))


def test_ignored_positions_of_a_sequence_take_no_part() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    module = Supervised(net, lambda logits, y: cross_entropy(logits.flatten(0, 1), y.flatten()))
    tokens = torch.randint(0, 5, (16, 6))
    targets = tokens.clone()
    targets[:, 3:] = -100
    whole = FisherTrace(labels="empirical").evaluate(module, loader(tokens[:, :3], targets[:, :3]))
    ignored = FisherTrace(labels="empirical").evaluate(module, loader(tokens, targets))
    assert ignored["fisher/empirical_trace"].value == pytest.approx(whole["fisher/empirical_trace"].value, rel=1e-5)
    assert ignored["fisher/loss"].value == pytest.approx(whole["fisher/loss"].value, rel=1e-5)
