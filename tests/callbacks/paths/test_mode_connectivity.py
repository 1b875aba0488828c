from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_probes import AtFitEnd, Curve, EveryNSteps, InitInterpolation, ModeConnectivity, Result
from lightning_probes.functional.paths.interpolation import lerp_params
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.run.init_state import capture_state
from lightning_probes.reporting import Curves
from tests.callbacks.models import Supervised, classification, loader, trainer

X, Y = classification()


def network(seed: int = 0, width: int = 8, batch_norm: bool = False) -> Supervised:
    torch.manual_seed(seed)
    norm = [nn.BatchNorm1d(width)] if batch_norm else []
    return Supervised(nn.Sequential(nn.Linear(4, width), *norm, nn.ReLU(), nn.Linear(width, 3)))


class Validated(Supervised):
    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        pass


def trained(seed: int, batch_norm: bool = False, **probes: Any) -> Supervised:
    module = network(seed, batch_norm=batch_norm)
    trainer(max_epochs=30, **probes).fit(module, loader(X, Y))
    return module


def connect(module: nn.Module, other: Any, **arguments: Any) -> dict[str, Result]:
    return ModeConnectivity(other, **arguments).evaluate(module, loader(X, Y))


def values(results: dict[str, Result]) -> dict[str, float]:
    return {key.removeprefix("connectivity/"): r.value for key, r in results.items() if hasattr(r, "detail")}


def permuted(module: Supervised, order: torch.Tensor) -> Supervised:
    """The same function with its hidden units in another order."""
    copy = network()
    copy.load_state_dict(module.state_dict())
    with torch.no_grad():
        copy.net[0].weight.copy_(module.net[0].weight[order])
        copy.net[0].bias.copy_(module.net[0].bias[order])
        copy.net[2].weight.copy_(module.net[2].weight[:, order])
    return copy


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_network_and_itself_have_barriers_of_exactly_zero(batch_norm: bool) -> None:
    module = trained(0, batch_norm)
    found = values(connect(module, module))
    kinds = ("barrier", "barrier_mean", "rise_above_ends")
    assert [found[f"{what}{kind}"] for what in ("", "error_") for kind in kinds] == [0.0] * 6
    assert found["distance"] == 0


def test_a_permuted_copy_of_a_network_is_behind_a_barrier() -> None:
    module = trained(0)
    found = connect(module, permuted(module, torch.randperm(8)))
    assert found["connectivity/loss"].y[-1] == pytest.approx(found["connectivity/loss"].y[0], rel=1e-6)
    assert values(found)["barrier"] > 0.01


def test_each_point_is_the_evaluated_loss_and_error_of_the_interpolated_network() -> None:
    module, other = trained(0), trained(1)
    found = connect(module, other, num_alphas=5)
    here, there = dict(module.named_parameters()), dict(other.named_parameters())
    for alpha, loss, error in zip(
        np.linspace(0, 1, 5), found["connectivity/loss"].y, found["connectivity/error"].y, strict=True
    ):
        between = network()
        between.load_state_dict(lerp_params(here, there, float(alpha)))
        logits = between.eval()(X)
        assert loss == pytest.approx(float(cross_entropy(logits, Y)), rel=1e-5)
        assert error == pytest.approx(float((logits.argmax(1) != Y).double().mean()))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_reversed_ends_reverse_the_curve(batch_norm: bool) -> None:
    one, two = trained(0, batch_norm), trained(1, batch_norm)
    there, back = connect(one, two), connect(two, one)
    for key in ("loss", "error"):
        assert np.allclose(there[f"connectivity/{key}"].y[::-1], back[f"connectivity/{key}"].y, atol=1e-6)
    for key in ("barrier", "error_barrier_mean", "distance"):
        assert values(there)[key] == pytest.approx(values(back)[key], abs=1e-6)


def test_standard_error_is_paired_over_micro_batches() -> None:
    module, other = trained(0), trained(1)
    found = connect(module, other, micro_batch_size=16)
    curve = found["connectivity/loss"].y
    heights = curve - ((1 - np.linspace(0, 1, 11)) * curve[0] + np.linspace(0, 1, 11) * curve[-1])
    highest = int(heights.argmax())
    assert 0 < highest < 10
    here, there = dict(module.named_parameters()), dict(other.named_parameters())
    per_batch = []
    for alpha in (0.0, highest / 10, 1.0):
        between = network()
        between.load_state_dict(lerp_params(here, there, alpha))
        batches = Drawing(512, 16, seed=0).draw(loader(X, Y)).batches
        contents = [batch.content for batch in batches]
        per_batch.append([float(cross_entropy(between.eval()(x), y)) for x, y in contents])
    start, top, end = np.array(per_batch)
    pairs = top - ((1 - highest / 10) * start + highest / 10 * end)
    barrier = found["connectivity/barrier"]
    assert barrier.value == pytest.approx(heights.max(), abs=1e-6)
    assert barrier.standard_error == pytest.approx(pairs.std(ddof=1) / 2, rel=1e-3)


def test_statistics_of_the_other_run_count_with_eval_alone() -> None:
    module, other = trained(0, batch_norm=True), trained(1, batch_norm=True)
    without = {name: tensor for name, tensor in other.state_dict().items() if "running" not in name}
    whole, bare = connect(module, other), connect(module, without)
    assert np.array_equal(whole["connectivity/loss"].y, bare["connectivity/loss"].y)
    interpolated = connect(module, other, batch_norm="eval")
    assert interpolated["connectivity/loss"].y[-1] == pytest.approx(float(cross_entropy(other.eval()(X), Y)), rel=1e-5)
    assert "connectivity/bn_gap" not in interpolated
    with pytest.raises(ValueError, match=r"other has no 'net.1.running_mean', which batch_norm='eval' interpolates"):
        connect(module, without, batch_norm="eval")


@pytest.mark.parametrize("form", ["checkpoint", "saved state dict", "state dict", "module"])
def test_the_other_run_is_given_in_each_form(form: str, tmp_path: Any) -> None:
    other = trained(1)
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": other.state_dict(), "epoch": 3} if form == "checkpoint" else other.state_dict(), path)
    given = {"state dict": other.state_dict(), "module": other}.get(form, path)
    module = network()
    assert values(connect(module, given)) == values(connect(module, other.state_dict()))


@pytest.mark.parametrize("argument", ["other", "other_init"])
def test_a_run_of_another_architecture_is_refused_before_the_first_step(argument: str) -> None:
    seen: list[int] = []

    class Counts(Supervised):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(batch_idx)
            return super().training_step(batch, batch_idx)

    ends = {"other": network(), "other_init": network(), argument: network(width=9)}
    probe = ModeConnectivity(cross=True, schedule=AtFitEnd(), **ends)
    expected = rf"^ModeConnectivity: {argument} does not belong to this module: parameter 'net.0.weight' of shape"
    with pytest.raises(ValueError, match=expected):
        trainer(max_epochs=1, callbacks=[probe]).fit(Counts(network().net), loader(X, Y))
    assert seen == []


def test_an_end_that_is_not_finite_has_no_barrier_and_raises_the_flag() -> None:
    other = network()
    with torch.no_grad():
        other.net[0].weight[0, 0] = torch.inf
    found = connect(network(1), other)
    assert np.isnan(values(found)["barrier"])
    assert found["connectivity/flag/nonfinite"].raised


def test_lines_from_an_initialisation_are_those_that_init_interpolation_measures() -> None:
    run, other = trained(0), trained(1)
    start, other_start = network(0), network(1)
    found = connect(run, other, cross=True, other_init=other_start, init_state=start, num_alphas=9)
    line = InitInterpolation(num_alphas=9, init_state=start).evaluate(other, loader(X, Y))
    assert np.allclose(found["connectivity/init_to_other/loss"].y, line["interpolation/loss"].y, atol=1e-6)
    back = InitInterpolation(num_alphas=9, init_state=other_start).evaluate(run, loader(X, Y))
    assert values(found)["other_init_to_run/max_rise"] == pytest.approx(back["interpolation/max_rise"].value, abs=1e-6)


def test_the_initialisation_is_captured_for_cross_interpolation_in_a_fit() -> None:
    probe = ModeConnectivity(network(5), cross=True, schedule=[EveryNSteps(50, stop=50), AtFitEnd()])
    trained(0, callbacks=[probe])
    assert [entry["step"] for entry in probe.history] == [0, 50, 120]
    expected = connect(network(0), network(5), cross=True, init_state=capture_state(network(0)))
    last = probe.results["connectivity/init_to_other/loss"].y
    assert np.allclose(last, expected["connectivity/init_to_other/loss"].y, atol=1e-6)
    with pytest.raises(MisconfigurationException, match="no initialisation to start the line from: pass init_state="):
        connect(network(0), network(5), cross=True)


def test_the_other_initialisation_asks_for_cross() -> None:
    with pytest.raises(ValueError, match="pass cross=True"):
        ModeConnectivity(network(), other_init=network())


def test_each_curve_and_barrier_has_a_picture_and_training_samples_come_first() -> None:
    probe = ModeConnectivity(network(5), align="weights", repair=True, cross=True, other_init=network(6))
    curved = ModeConnectivity(network(5), path="bezier", path_steps=4, name="curved")
    fit = trainer(max_epochs=1, callbacks=[probe, curved])
    fit.fit(Validated(network().net), loader(X, Y), loader(X, Y))
    drawn = [picture.key for picture in (*probe.pictures(), *curved.pictures())]
    curves = [key for each in (probe, curved) for key, result in each.results.items() if isinstance(result, Curve)]
    over_steps = [f"{each.name}/{kind}barrier_over_steps" for each in (probe, curved) for kind in ("", "error_")]
    assert sorted(drawn) == sorted([*curves, *over_steps])
    for key in ("loss", "error"):
        assert drawn.index(f"connectivity/{key}") < drawn.index(f"connectivity/val/{key}")
    lines = probe.figure("connectivity/barrier_over_steps").data
    assert [line.name for line in lines if line.mode == "lines+markers"] == ["as trained", "units matched"]
    dashes = [line.line.dash for line in probe.figure("connectivity/loss").data]
    assert dashes == [None, "dash"] * len(probe.history)


@pytest.mark.parametrize("probe", [ModeConnectivity({}, data="val"), InitInterpolation(data="val")], ids=["two", "one"])
def test_titles_say_validation_where_validation_samples_are_the_only_ones(probe: Any) -> None:
    titles = [panel.title for panel in probe.panels if isinstance(panel, Curves)]
    assert all(title.startswith("Validation") for title in titles)
