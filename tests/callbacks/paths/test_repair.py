from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_probes.callbacks.paths.repair import repairable, repaired, spreads
from lightning_probes.functional.paths.interpolation import lerp_params
from lightning_probes.functional.units.groups import Group
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.view import ModelView
from tests.callbacks.models import classification, loader

X, Y = classification(64, inputs=16)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))


def cnn() -> nn.Sequential:
    shape = nn.Unflatten(1, (1, 4, 4))
    return nn.Sequential(
        shape, nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )


def view_of(module: nn.Module, micro_batch_size: int = len(X)) -> ModelView:
    objective = Objective(lambda module, batch: cross_entropy(module(batch[0]), batch[1]))
    return ModelView(Twin(module), objective, {"train": Drawing(len(X), micro_batch_size).draw(loader(X, Y))})


def state(make: Any, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: parameter.detach() for name, parameter in make().named_parameters()}


def groups_of(*names: str) -> list[Group]:
    """Groups that these modules compute; nothing else of them is looked at."""
    return [Group(name, {}, ((f"{name}.weight", 0),)) for name in names]


@pytest.mark.parametrize(("make", "hidden"), [(mlp, ["0", "2"]), (cnn, ["1", "3"])])
def test_layers_of_the_repaired_point_have_the_mean_and_spread_between_the_ends(make: Any, hidden: list[str]) -> None:
    here, there, view = state(make, 1), state(make, 2), view_of(make())
    layers = repairable(view, groups_of(*hidden))
    assert layers == hidden
    ends = [spreads(view, end, layers) for end in (here, there)]
    goal = {name: ends[0][name].towards(ends[1][name], 0.3) for name in layers}

    point = lerp_params(here, there, 0.3)
    found = spreads(view, repaired(view, point, goal), layers)

    for name in layers:
        torch.testing.assert_close(found[name].mean, goal[name].mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].std, goal[name].std, rtol=1e-4, atol=1e-5)
        assert (spreads(view, point, layers)[name].std - goal[name].std).abs().max() > 1e-2


def test_spreads_are_those_of_the_outputs_of_the_layers() -> None:
    net = cnn()
    view = view_of(net)
    found = spreads(view, {}, ["1", "3"])
    with torch.no_grad():
        hidden = net[:2](X)
        for name, outputs in (("1", hidden), ("3", net[2:4](hidden))):
            units = outputs.double().movedim(1, -1).flatten(0, -2)
            torch.testing.assert_close(found[name].mean, units.mean(0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found[name].std, units.std(0, correction=0), rtol=1e-5, atol=1e-6)


def test_repair_of_an_end_leaves_it_as_it_is() -> None:
    here, view = state(mlp, 1), view_of(mlp())
    found = repaired(view, here, spreads(view, here, ["0", "2"]))
    for name, tensor in here.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_moments_of_micro_batches_are_averaged() -> None:
    here = state(mlp, 1)
    whole, parts = (spreads(view_of(mlp(), size), here, ["0"])["0"] for size in (len(X), 16))
    torch.testing.assert_close(parts.mean, whole.mean)
    assert parts.std.lt(whole.std).all()  # the variance between micro-batches is missing, as for BatchNorm


class Odd(nn.Module):
    """Layers with and without a bias, with a shared weight, called twice, and not called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.biasless = nn.Linear(16, 8), nn.Linear(8, 8, bias=False)
        self.shared, self.sharing = nn.Linear(8, 8), nn.Linear(8, 8)
        self.sharing.weight = self.shared.weight
        self.twice, self.unused, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.sharing(self.shared(self.biasless(self.plain(x)).relu()).relu())
        return self.head(self.twice(self.twice(h).relu()).relu())


def test_layers_without_outputs_or_a_bias_of_their_own_are_left_out() -> None:
    everything = groups_of("plain", "biasless", "shared", "sharing", "twice", "unused")
    assert repairable(view_of(Odd()), everything) == ["plain"]


def test_nothing_to_repair_is_no_error() -> None:
    view = view_of(mlp())
    assert repairable(view, []) == []
    point = state(mlp, 3)
    assert repaired(view, point, spreads(view, point, [])) == point


def test_twin_has_no_hooks_afterwards() -> None:
    view = view_of(mlp())
    spreads(view, {}, ["0", "2"])
    assert not any(module._forward_hooks for module in view.module.modules())
