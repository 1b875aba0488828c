"""The other run's units are matched to this run's, and barriers that come from their order alone are gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_probes import AtFitEnd, EveryNSteps, ModeConnectivity, Result
from lightning_probes.callbacks.paths import aligning
from lightning_probes.functional.units.finding import find_groups
from lightning_probes.functional.units.groups import permuted, random_permutations
from lightning_probes.functional.units.matching import Matching, match_weights
from tests.callbacks.models import Supervised, loader, trainer

WAYS = ["weights", "activations"]


def images(samples: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 1, 6, 6, generator=generator)
    return x, (x[:, 0, :3].sum((1, 2)) > 0).long() + (x[:, 0, 3:].sum((1, 2)) > 0).long()


X, Y = images()


def mlp() -> nn.Module:
    layers = [nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)]
    return nn.Sequential(nn.Flatten(), *layers)


def cnn() -> nn.Module:
    convolutions = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.stem(x)))
        return self.head((h + self.outer(torch.relu(self.inner(h)))).mean((2, 3)))


MAKERS = {"mlp": mlp, "cnn": cnn, "residual": Residual}


def trained(kind: str, seed: int, **probes: Any) -> Supervised:
    torch.manual_seed(seed)
    module = Supervised(MAKERS[kind](), optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    trainer(max_epochs=8, **probes).fit(module, loader(X, Y, batch_size=32))
    return module


def shuffled(module: Supervised, seed: int = 0) -> dict[str, torch.Tensor]:
    """The state of the same function with all its units in another order."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}

    def run(state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(module.eval(), state, (X[:2],))

    groups = find_groups(state, run).groups
    other = permuted(state, groups, random_permutations(groups, torch.Generator().manual_seed(seed)))
    with torch.no_grad():
        assert torch.allclose(torch.func.functional_call(module, other, (X,)), module(X), atol=1e-5)
    return other


def connect(module: nn.Module, other: Any, **arguments: Any) -> dict[str, Result]:
    found = ModeConnectivity(other, **arguments).evaluate(module, loader(X, Y, batch_size=32))
    return {key.removeprefix("connectivity/"): result for key, result in found.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_permuted_copy_is_behind_a_barrier_and_behind_none_at_all_once_it_is_matched(kind: str, way: Any) -> None:
    module = trained(kind, 0)
    found = connect(module, shuffled(module), align=way)
    assert found["barrier"].value > 0.01
    assert found["distance"].value > 0.1
    for key in ("barrier", "barrier_mean", "rise_above_ends", "error_barrier", "distance"):
        assert found[f"aligned/{key}"].value == 0  # the weights are equal bit for bit
    assert found["aligned/moved_units"].value > 0.5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_matching_lowers_the_barrier_between_two_runs_and_keeps_the_other_function(kind: str, way: Any) -> None:
    module, other = trained(kind, 0), trained(kind, 1)
    found = connect(module, other, align=way)
    assert found["aligned/barrier"].value < 0.7 * found["barrier"].value
    assert found["aligned/loss"].y[[0, -1]] == pytest.approx(found["loss"].y[[0, -1]], rel=1e-4)


def test_statistics_of_the_other_run_are_permuted_with_its_units() -> None:
    module, other = trained("cnn", 0), trained("cnn", 1)
    found = connect(module, other, align="weights", batch_norm="eval")
    expected = float(cross_entropy(other.eval()(X).detach(), Y))
    assert found["aligned/loss"].y[-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_parameters_of_the_user_are_never_permuted(way: Any) -> None:
    other = trained("mlp", 1)
    plain, watched = trained("mlp", 0), trained("mlp", 0, callbacks=[ModeConnectivity(other, align=way)])
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_weights_are_matched_from_the_order_that_the_last_measurement_found(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, ends = [], []

    def match(*arguments: Any, **options: Any) -> Matching:
        starts.append([order.tolist() for order in arguments[4]])
        found = match_weights(*arguments, **options)
        ends.append([order.tolist() for order in found.permutations])
        return found

    monkeypatch.setattr(aligning, "match_weights", match)
    trained("mlp", 0, callbacks=[ModeConnectivity(trained("mlp", 1), align="weights", schedule=EveryNSteps(8))])
    assert starts == [[list(range(24))] * 2, *ends[:-1]]
    assert len(ends) == 4
    assert ends[0] != starts[0]


def test_a_path_ends_at_the_matched_run() -> None:
    module = trained("mlp", 0)
    probe = ModeConnectivity(shuffled(module), align="weights", path="bezier", path_steps=20, path_lr=1e-6)
    found = probe.evaluate(module, loader(X, Y, batch_size=32))
    assert found["connectivity/path/length_over_chord"].value == pytest.approx(1, abs=1e-3)
    assert np.ptp(found["connectivity/path/loss"].y) < 1e-3
    assert probe.schedule == AtFitEnd()


@pytest.mark.parametrize("way", WAYS)
def test_repair_lowers_the_barrier_between_matched_runs_and_leaves_both_ends(way: Any) -> None:
    found = connect(trained("mlp", 0), trained("mlp", 1), align=way, repair=True)
    assert found["repaired/barrier"].value < found["aligned/barrier"].value
    assert found["repaired/loss"].y[[0, -1]] == pytest.approx(found["aligned/loss"].y[[0, -1]], rel=1e-9)


def test_repair_asks_for_matched_units() -> None:
    with pytest.raises(ValueError, match="pass align='activations' with it"):
        ModeConnectivity({}, repair=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_network_without_hidden_units_has_nothing_to_match_and_that_is_said(way: Any) -> None:
    torch.manual_seed(0)
    linear, other = (Supervised(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))) for _ in range(2))
    probe = ModeConnectivity(other, align=way)
    found = probe.evaluate(linear, loader(X, Y))
    assert found["connectivity/aligned/barrier"].value == found["connectivity/barrier"].value
    assert found["connectivity/aligned/moved_units"].value == 0
    assert any("no exchangeable units were found" in line for line in probe.say.said)
