from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_probes import EveryNSteps, FisherTrace, Flag
from lightning_probes.testing.zoo import CASES
from tests.callbacks.models import Supervised, classification, explicit_hessian, loader, trainer
from tests.tester import fit


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


def learns(probe: FisherTrace, epochs: int = 30) -> FisherTrace:
    """A network on classes that can be told apart: its loss falls and its trace grows, so that the crossing counts."""
    x, _ = classification()
    torch.manual_seed(0)
    module = Supervised(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)))
    trainer(max_epochs=epochs, callbacks=[probe]).fit(module, loader(x, x[:, :3].argmax(1)))
    return probe


def interpolated_peak(traces: list[float], losses: list[float], level: float) -> float:
    """By numpy's interpolation of each quantity between measurements, on a fine grid up to the first crossing."""
    fine = np.linspace(0, len(losses) - 1, 20_001)
    loss, trace = (np.interp(fine, range(len(losses)), values) for values in (losses, traces))
    return float(trace[: int(np.argmax(loss <= level)) + 1].max())


def test_empirical_trace_has_pictures_of_its_own() -> None:
    probe = FisherTrace(labels="empirical", num_samples=16)
    fit(CASES["list_batch"].make, [probe])
    assert [picture.key for picture in probe.pictures()] == [
        "fisher/empirical_trace_over_steps", "fisher/empirical_trace_over_loss",
    ]  # fmt: skip
    assert "empirical Fisher" in probe.figure().layout.title.text


@pytest.mark.parametrize(("labels", "key"), [("exact", "trace"), ("empirical", "empirical_trace")])
def test_peak_at_equal_loss_is_in_the_summary(labels: Any, key: str) -> None:
    probe = learns(FisherTrace(labels=labels, schedule=EveryNSteps(5)))
    traces, losses = ([entry[f"fisher/{k}"] for entry in probe.history] for k in (key, "loss"))
    assert losses[-1] < losses[0] / 2
    expected = interpolated_peak(traces, losses, losses[0] / 2)
    assert probe.summary[f"fisher/{key}_max_at_loss"] == pytest.approx(expected, rel=1e-3)
    assert f"fisher/{key}_max_at_loss" not in probe.history[-1]


def test_peak_up_to_a_loss_that_was_named() -> None:
    probe = learns(FisherTrace(labels="exact", schedule=EveryNSteps(5), at_loss=0.7))
    traces, losses = ([entry[f"fisher/{k}"] for entry in probe.history] for k in ("trace", "loss"))
    expected = interpolated_peak(traces, losses, 0.7)
    assert probe.summary["fisher/trace_max_at_loss"] == pytest.approx(expected, rel=1e-3)


def test_a_run_that_has_not_come_so_far_has_no_peak_at_equal_loss() -> None:
    summary = learns(FisherTrace(schedule=EveryNSteps(5), at_loss=1e-9), epochs=1).summary
    assert summary.keys() == {"fisher/trace_max", "fisher/explosion_ratio"}


def test_level_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="at_loss"):
        FisherTrace(at_loss=float("nan"))


def test_exact_labels_of_sequences_are_refused_with_the_argument_to_set() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    module = Supervised(net, lambda logits, y: cross_entropy(logits.flatten(0, 1), y.flatten()))
    tokens = torch.randint(0, 5, (8, 6))
    with pytest.raises((ValueError, MisconfigurationException), match="labels"):
        FisherTrace(labels="exact").evaluate(module, loader(tokens, tokens))


def test_exact_labels_of_sequences_are_refused_before_the_first_step_of_a_late_schedule() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    module = Supervised(net, lambda logits, y: cross_entropy(logits.flatten(0, 1), y.flatten()))
    tokens = torch.randint(0, 5, (8, 6))
    fit = trainer(max_steps=3, callbacks=[FisherTrace(labels="exact", schedule=EveryNSteps(2, start=2))])
    with pytest.raises(
        ValueError, match=r"^FisherTrace: exact scores need one position per sample.*labels=\"sampled\""
    ):
        fit.fit(module, loader(tokens, tokens, batch_size=4))
    assert fit.global_step == 0


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_exact_labels_of_several_independent_outputs_are_not_refused(likelihood: Any) -> None:
    x, _ = classification()
    y = (torch.randn(len(x), 3) > 0).float()
    module = Supervised(nn.Linear(4, 3), nn.functional.binary_cross_entropy_with_logits)
    results = FisherTrace(labels="exact", likelihood=likelihood).evaluate(module, loader(x, y))
    assert results["fisher/trace"].value > 0


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_exact_labels_of_many_classes_say_what_they_will_take(
    likelihood: Any, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = 151 if likelihood == "categorical" else 150
    module = Supervised(nn.Linear(4, outputs))
    targets = torch.zeros(32, dtype=torch.long) if likelihood == "categorical" else torch.zeros(32, outputs)
    probe = FisherTrace(labels="exact", likelihood=likelihood, loss_fn=lambda module, batch: module(batch[0]).mean())
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        probe.evaluate(module, loader(torch.randn(32, 4), targets))
        FisherTrace(labels="exact", name="few").evaluate(softmax_regression(), loader(*classification()))
    said = [record.message for record in caplog.records if "backward passes" in record.message]
    assert len(said) == 1
    assert "150 backward passes for each of 2 micro-batches, 300 at every measurement" in said[0]


def test_likelihood_of_no_name_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"likelihood must be one of 'auto', .*'gaussian', got 'poisson'"):
        FisherTrace(likelihood="poisson")  # type: ignore[arg-type]


def test_layer_that_a_later_batch_calls_in_another_way_is_an_error_of_the_probe_that_says_what_to_pass() -> None:
    """The second layer gets its samples in dim 1 for every batch but the one that was tried."""
    x, y = classification()
    module = Supervised(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    first: list[torch.Tensor] = []

    def logits(module: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        first[:] = first or [batch[0]]
        same = torch.equal(first[0], batch[0])
        return (module(batch[0]) if same else module(batch[0][None])[0]), batch[1]

    expected = r"^FisherTrace: layer 'net.\d' was called in another way .*: pass predict_fn="
    with pytest.raises(ValueError, match=expected):
        FisherTrace(predict_fn=logits).evaluate(module, loader(x, y))
    fit = trainer(max_steps=2, callbacks=[FisherTrace(predict_fn=logits, schedule=EveryNSteps(1))])
    with pytest.raises(ValueError, match=expected):
        fit.fit(module, loader(x, y))


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
