from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_probes import AtFitEnd, EveryNSteps, InitInterpolation
from lightning_probes.probing.run.init_state import capture_state
from tests.callbacks.models import Supervised, classification, loader, trainer


def with_batch_norm() -> Supervised:
    torch.manual_seed(0)
    return Supervised(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3)))


def trained(module: Supervised, x: torch.Tensor, y: torch.Tensor, steps: int = 30, **probe: Any) -> InitInterpolation:
    probe_ = InitInterpolation(schedule=AtFitEnd(), **probe)
    trainer(max_epochs=steps, callbacks=[probe_]).fit(module, loader(x, y))
    return probe_


def test_curve_equals_the_closed_form_of_linear_regression() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = x @ torch.randn(4, 2) + 0.1 * torch.randn(64, 2)
    module = Supervised(nn.Linear(4, 2), mse_loss)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    probe = trained(module, x, y, num_alphas=9)
    end = {name: p.detach() for name, p in module.named_parameters()}

    # The loss is a quadratic in alpha: |r0 + alpha (r1 - r0)|^2 / count, with residuals r at the two ends.
    residuals = [(x @ p["net.weight"].T + p["net.bias"] - y).double() for p in (start, end)]
    a = np.linspace(0, 1, 9)
    expected = [float((residuals[0] + t * (residuals[1] - residuals[0])).square().mean()) for t in a]
    curve = probe.results["interpolation/loss"]
    assert np.allclose(curve.x, a)
    assert np.allclose(curve.y, expected, rtol=1e-5)
    moved = float(sum((end[n] - start[n]).double().square().sum() for n in start) ** 0.5)
    length = float(sum(p.double().square().sum() for p in start.values()) ** 0.5)
    assert probe.results["interpolation/distance"].value == pytest.approx(moved, rel=1e-6)
    assert probe.results["interpolation/distance_normalized"].value == pytest.approx(moved / length, rel=1e-6)
    assert probe.results["interpolation/monotonic"].value == 1.0
    assert "interpolation/accuracy" not in probe.results
    assert "interpolation/bn_gap" not in probe.results


@pytest.mark.parametrize("batch_norm", ["eval", "recalibrate"])
def test_ends_equal_direct_evaluation_of_the_loaded_state_dicts(batch_norm: Any) -> None:
    x, y = classification()
    module = with_batch_norm()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    probe = trained(module, x, y, batch_norm=batch_norm, num_alphas=3, micro_batch_size=64)
    curve, accuracy = probe.results["interpolation/loss"], probe.results["interpolation/accuracy"]
    for index, state in ((0, before), (-1, module.state_dict())):
        reference = with_batch_norm()
        reference.load_state_dict(state)
        if batch_norm == "recalibrate":
            reference.net[1].reset_running_stats()
            reference.net[1].momentum = None
            reference.train()(x)
        logits = reference.eval()(x)
        assert curve.y[index] == pytest.approx(float(cross_entropy(logits, y)), rel=1e-5)
        assert accuracy.y[index] == pytest.approx(float((logits.argmax(1) == y).double().mean()))


def test_bn_gap_is_what_recalibration_alone_changes_at_the_end() -> None:
    x, y = classification()
    module = with_batch_norm()
    probe = trained(module, x, y, num_alphas=2)
    kept = float(cross_entropy(module.eval()(x), y))
    gap = probe.results["interpolation/bn_gap"].value
    assert gap == pytest.approx(probe.results["interpolation/loss"].y[-1] - kept, abs=1e-6)
    assert gap != 0


def test_frozen_batch_norm_is_not_re_estimated() -> None:
    class Frozen(Supervised):
        def on_train_epoch_start(self) -> None:
            self.net[1].eval()

    torch.manual_seed(0)
    module = Frozen(with_batch_norm().net)
    x, y = classification()
    probe = trained(module, x, y, num_alphas=2)
    assert probe.results["interpolation/loss"].y[-1] == pytest.approx(
        float(cross_entropy(module.eval()(x), y)), rel=1e-5
    )
    assert "interpolation/bn_gap" not in probe.results


def hill(start: float, end: float) -> tuple[Supervised, dict[str, torch.Tensor], Any]:
    """A loss that depends on one parameter w as w (1 - w) + w / 2 does between 0 and 1, up to a per-sample shift."""
    module = Supervised(nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        module.net.weight.fill_(end)

    def loss(module: Any, batch: Any) -> torch.Tensor:
        w = module.net.weight.squeeze()
        return (w * (1 - w) + w * batch[0].mean()).squeeze()

    return module, {"net.weight": torch.tensor([[start]])}, loss


def test_rise_is_the_largest_climb_with_its_error_from_paired_micro_batches() -> None:
    module, init, loss = hill(0.0, 1.0)
    slopes = torch.linspace(-1, 1, 64)[:, None]
    probe = InitInterpolation(loss_fn=loss, num_alphas=5, micro_batch_size=16, seed=1)
    data = loader(slopes, torch.zeros(64))
    results = probe.evaluate(module, data, init_state=init)
    curve = results["interpolation/loss"]
    assert np.allclose(curve.y, [0, 0.1875, 0.25, 0.1875, 0], atol=1e-6)
    rise = results["interpolation/max_rise"]
    assert rise.value == pytest.approx(0.25, abs=1e-6)
    # Between alpha = 0 and 0.5 a micro-batch climbs by 0.25 + mean slope / 2.
    from lightning_probes.probing.data.drawing import Drawing

    batches = Drawing(512, 16, seed=1).draw(data).batches
    climbs = torch.stack([0.25 + batch.content[0].mean() / 2 for batch in batches]).double()
    assert rise.standard_error == pytest.approx(float(climbs.std() / 2), rel=1e-4)
    assert results["interpolation/monotonic"].value == float(2 * rise.standard_error >= 0.25)


def test_rise_confined_to_the_last_interval_counts() -> None:
    module, init, loss = hill(-1.0, 0.25)
    results = InitInterpolation(loss_fn=loss, num_alphas=2).evaluate(
        module, loader(torch.zeros(16, 1), torch.zeros(16)), init_state=init
    )
    assert results["interpolation/max_rise"].value == pytest.approx(0.1875 + 2.0)
    assert results["interpolation/monotonic"].value == 0.0


def test_non_finite_point_makes_monotonic_absent_and_raises_the_flag() -> None:
    def loss(module: Any, batch: Any) -> torch.Tensor:
        w = module.net.weight.squeeze()
        return torch.where((w - 0.5).abs() < 0.1, torch.nan * w, w) + 0 * batch[0].sum()

    module, init, _ = hill(0.0, 1.0)
    results = InitInterpolation(loss_fn=loss, num_alphas=5).evaluate(
        module, loader(torch.zeros(16, 1), torch.zeros(16)), init_state=init
    )
    assert np.isnan(results["interpolation/max_rise"].value)
    assert "interpolation/monotonic" not in results
    assert results["interpolation/flag/nonfinite"].raised
    assert np.isnan(results["interpolation/loss"].y).tolist() == [False, False, True, False, False]


def test_layers_move_alone_and_the_others_stay_where_they_are() -> None:
    x, y = classification()
    torch.manual_seed(0)
    now = Supervised(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    start = {name: torch.randn_like(tensor) for name, tensor in now.state_dict().items()}
    results = InitInterpolation(layers=["net.2"], num_alphas=2).evaluate(now, loader(x, y), init_state=start)
    mixed = Supervised(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    mixed.load_state_dict({n: (start if n.startswith("net.2") else now.state_dict())[n] for n in start})
    assert results["interpolation/loss"].y[0] == pytest.approx(float(cross_entropy(mixed(x), y)), rel=1e-5)
    with pytest.raises(MisconfigurationException, match="layers: 'nett' matches nothing"):
        InitInterpolation(layers=["nett"]).evaluate(now, loader(x, y), init_state=start)


def test_validation_data_has_curves_of_its_own() -> None:
    x, y = classification()
    other = classification(seed=1)
    module = with_batch_norm()
    probe = InitInterpolation(schedule=AtFitEnd(), num_alphas=2)
    trainer(max_epochs=5, callbacks=[probe]).fit(module, loader(x, y))
    assert "interpolation/val/loss" not in probe.results

    class Validated(Supervised):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    module = Validated(nn.Sequential(nn.Linear(4, 3)))
    probe = InitInterpolation(schedule=AtFitEnd(), num_alphas=2)
    trainer(max_epochs=5, callbacks=[probe]).fit(module, loader(x, y), loader(*other))
    expected = float(cross_entropy(module(other[0]), other[1]))
    assert probe.results["interpolation/val/loss"].y[-1] == pytest.approx(expected, rel=1e-5)
    assert probe.results["interpolation/val/accuracy"].y[-1] == pytest.approx(
        float((module(other[0]).argmax(1) == other[1]).double().mean())
    )


def test_accuracy_is_left_out_where_training_step_predicts_on_other_inputs() -> None:
    class Shifted(Supervised):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss(self(batch[0] + 1), batch[1])

    x, y = classification()
    probe = InitInterpolation(num_alphas=2)
    results = probe.evaluate(Shifted(nn.Linear(4, 3)), loader(x, y), init_state=capture_state(Shifted(nn.Linear(4, 3))))
    assert "interpolation/accuracy" not in results
    assert any("other inputs" in message for message in probe.say.said)


def test_unknown_initialisation_is_refused_with_the_argument_to_set() -> None:
    x, y = classification()
    with pytest.raises(MisconfigurationException, match="init_state="):
        InitInterpolation().evaluate(with_batch_norm(), loader(x, y))


def test_state_of_another_model_is_refused() -> None:
    x, y = classification()
    with pytest.raises(ValueError, match=r"init_state does not belong to this module: parameter 'net\.0\.weight'"):
        InitInterpolation().evaluate(with_batch_norm(), loader(x, y), init_state={"net.0.weight": torch.zeros(2, 2)})


class Grows(Supervised):
    """Becomes wider, or gets a layer more, at its third step."""

    def __init__(self, how: str) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)))
        self.how = how

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and self.how == "wider":
            self.net[0].weight, self.net[0].bias = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(9))
            self.net[1].weight = nn.Parameter(torch.randn(3, 9))
        elif batch_idx == 2:
            self.net.append(nn.Linear(3, 3))


@pytest.mark.parametrize(("how", "name"), [("wider", "net.0.weight"), ("longer", "net.2.weight")])
def test_parameter_that_has_no_initial_value_ends_the_measurements_and_not_training(how: str, name: str) -> None:
    probe = InitInterpolation(schedule=EveryNSteps(1), num_alphas=3)
    fit = trainer(max_epochs=1, callbacks=[probe])
    with pytest.warns(UserWarning, match=f"parameter '{name}' did not exist, or had another shape, .* no line") as said:
        fit.fit(Grows(how), loader(*classification(), batch_size=8))
    assert fit.global_step == 8
    assert [entry["step"] for entry in probe.history] == [0, 1, 2]
    assert len([each for each in said if "no line" in str(each.message)]) == 1
