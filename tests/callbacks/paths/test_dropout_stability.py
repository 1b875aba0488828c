from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_probes import AtFitEnd, DropoutStability, Result, Scalar
from tests.callbacks.models import Supervised, classification, loader, trainer

X, Y = classification()


def value(results: dict[str, Result], key: str) -> float:
    result = results[f"dropout/{key}"]
    assert isinstance(result, Scalar)
    return result.value


def measure(net: nn.Module, loss: Any = cross_entropy, **arguments: Any) -> dict[str, Result]:
    return DropoutStability(**arguments).evaluate(Supervised(net, loss), loader(X, Y))


def chain(width: int = 16, depth: int = 2, between: Any = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [4, *[width] * depth]
    hidden = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), between())]
    return nn.Sequential(*hidden, nn.Linear(width, 3))


def loss_with(net: nn.Sequential, kept: dict[int, list[int]]) -> float:
    """The loss if layers read only the kept units, each of them more strongly."""
    with torch.no_grad():
        hidden = X
        for number, layer in enumerate(net):
            hidden = layer(hidden)
            if number - 1 in kept:  # this is the activation behind that layer
                mask = torch.zeros(hidden.shape[1])
                mask[kept[number - 1]] = hidden.shape[1] / len(kept[number - 1])
                hidden = hidden * mask
        return float(cross_entropy(hidden, Y))


def test_each_half_of_two_units_has_the_loss_of_the_network_with_that_unit_alone() -> None:
    net = chain(width=2, depth=1)
    alone = [loss_with(net, {0: [unit]}) - loss_with(net, {}) for unit in (0, 1)]

    found = measure(net, halves=20)

    assert value(found, "rise_best") == pytest.approx(min(alone), abs=1e-6)
    share = (value(found, "rise") - alone[1]) / (alone[0] - alone[1])
    assert 0 < share < 1
    assert 20 * share == pytest.approx(round(20 * share), abs=1e-3)
    spread = abs(alone[0] - alone[1]) * (share * (1 - share) / 19) ** 0.5
    assert found["dropout/rise"].standard_error == pytest.approx(spread, rel=1e-4)  # type: ignore[union-attr]


def test_suffix_is_the_worst_of_the_best_half_from_each_layer_on() -> None:
    net = chain(width=2, depth=3, between=nn.Tanh)  # no unit is dead, so no two halves are equal
    loss = loss_with(net, {})
    halves = [dict(zip((0, 2, 4), ([a], [b], [c]), strict=True)) for a, b, c in itertools.product((0, 1), repeat=3)]
    best = min(halves, key=lambda kept: loss_with(net, kept))
    suffixes = [{layer: units for layer, units in best.items() if layer >= first} for first in best]

    found = measure(net, halves=64)

    assert value(found, "rise_best") == pytest.approx(loss_with(net, best) - loss, abs=1e-6)
    largest = max(loss_with(net, kept) for kept in suffixes) - loss
    assert value(found, "suffix_max") == pytest.approx(largest, abs=1e-6)
    assert value(found, "bound") == pytest.approx(loss + max(0.0, largest), abs=1e-6)


@pytest.mark.parametrize("between", [nn.ReLU, nn.Tanh])
def test_two_equal_units_that_share_their_outgoing_weights_need_one_of_them(between: Any) -> None:
    net = chain(width=2, between=between)
    with torch.no_grad():
        for layer in net[::2]:
            if layer.out_features == 2:
                layer.weight[1], layer.bias[1] = layer.weight[0], layer.bias[0]
            if layer.in_features == 2:
                layer.weight[:, 1] = layer.weight[:, 0]
    found = measure(net)
    for key in ("rise", "rise_best", "suffix_max"):
        assert value(found, key) == pytest.approx(0, abs=1e-7)


def test_fraction_of_zero_changes_nothing_at_all() -> None:
    found = measure(chain(), fraction=0, per_layer=True)
    for key in ("rise", "rise_best", "suffix_max", "error_rise", "layer/net/0", "layer/net/2"):
        assert value(found, key) == 0
    assert "dropout/bound" not in found


def test_layers_one_by_one_are_those_of_a_probe_that_drops_that_layer_alone() -> None:
    net = chain()
    found = measure(net, per_layer=True)
    alone = measure(net, layers="net.0")
    assert value(alone, "rise") == value(found, "layer/net/0")
    assert alone["dropout/rise"].standard_error == found["dropout/layer/net/0"].standard_error  # type: ignore[union-attr]
    assert value(found, "layer/net/2") not in (0, value(found, "layer/net/0"))


def test_rise_of_the_error_is_that_of_the_predictions() -> None:
    torch.manual_seed(0)
    net = chain(width=2, depth=1)
    found = measure(net, halves=1)
    with torch.no_grad():
        wrong = float((net(X).argmax(1) != Y).double().mean())
    half = [loss_with(net, {0: [unit]}) for unit in (0, 1)]
    unit = int(np.argmin([abs(value(found, "rise") + loss_with(net, {}) - each) for each in half]))
    with torch.no_grad():
        mask = torch.eye(2)[unit] * 2
        other = float((net[2](net[:2](X) * mask).argmax(1) != Y).double().mean())
    assert value(found, "error_rise") == pytest.approx(other - wrong, abs=1e-9)
    assert found["dropout/rise"].standard_error is None  # type: ignore[union-attr]


def test_batch_norm_is_re_estimated_for_each_half_and_for_the_whole() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    found = measure(net, layers="net.0", micro_batch_size=64, halves=20)

    def loss_of(kept: list[int]) -> float:
        mask = torch.zeros(2)
        mask[kept] = 2 / len(kept)
        with torch.no_grad():
            hidden = net[2](net[:2](X) * mask)
            variance, mean = torch.var_mean(hidden, 0)  # running statistics have the unbiased variance
            hidden = (hidden - mean) / (variance + net[3].eps).sqrt()
            return float(cross_entropy(net[4:](hidden), Y))

    assert value(found, "loss") == pytest.approx(loss_of([0, 1]), rel=1e-5)
    assert value(found, "rise_best") == pytest.approx(min(loss_of([0]), loss_of([1])) - loss_of([0, 1]), abs=1e-5)
    kept = measure(net, layers="net.0", micro_batch_size=64, halves=20, batch_norm="eval")
    assert abs(value(kept, "loss") - value(found, "loss")) > 1e-3


class Stream(nn.Module):
    """Two blocks write to a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def settings(**arguments: Any) -> dict[str, Any]:
    probe = DropoutStability(schedule=AtFitEnd(), **arguments)
    trainer(max_steps=1, callbacks=[probe]).fit(Supervised(Stream()), loader(X, Y))
    return probe.progress.settings


def test_stream_that_several_modules_write_to_is_left_out_and_named() -> None:
    found = settings()
    assert found["units"] == ["net.blocks.0.0", "net.blocks.1.0"]
    assert found["left_out"] == ["net.embed"]


def test_chosen_groups_are_dropped_and_the_others_named() -> None:
    found = settings(layers=["net.embed", "*blocks.0*"])
    assert found["units"] == ["net.embed", "net.blocks.0.0"]
    assert found["left_out"] == ["net.blocks.1.0"]


def test_units_of_a_model_that_has_nothing_but_a_stream_are_dropped() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.left(x) + self.right(x)))

    assert value(measure(Sum()), "rise") != 0


def test_layer_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(MisconfigurationException, match="layers: 'nett' matches nothing; close names are"):
        measure(chain(), layers=["nett"])


def test_model_without_hidden_units_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="has no hidden units that can be exchanged"):
        measure(nn.Linear(4, 3))


class Focal(nn.Module):
    """A loss that is not convex in the logits."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        nll = cross_entropy(logits, targets, reduction="none")
        return ((1 - (-nll).exp()) ** 2 * nll).mean()


class Normalised(nn.Module):
    """Units see one another."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() / (1 + x.relu().sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("net", "loss", "arguments", "bounded"),
    [
        (chain(), cross_entropy, {}, True),
        (chain(depth=3, between=nn.GELU), cross_entropy, {}, True),
        (chain(), nn.CrossEntropyLoss(label_smoothing=0.1), {}, True),
        (chain(width=15), cross_entropy, {}, True),
        (chain(), cross_entropy, {"fraction": 0.75}, True),
        (chain(), cross_entropy, {"fraction": 0.25}, False),
        (chain(), cross_entropy, {"rescale": False}, False),
        (chain(), cross_entropy, {"layers": "net.0"}, False),
        (chain(between=Normalised), cross_entropy, {}, False),
        (chain(), Focal(), {}, False),
        (nn.Sequential(chain(), nn.Tanh()), cross_entropy, {}, False),
        (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)), cross_entropy, {}, False),
        (Stream(), cross_entropy, {}, False),
    ],
)  # fmt: skip
def test_bound_is_there_for_plain_chains_with_a_convex_loss_alone(
    net: nn.Module, loss: Any, arguments: dict[str, Any], bounded: bool
) -> None:
    assert ("dropout/bound" in measure(net, loss, **arguments)) == bounded


def test_rise_falls_with_the_width_of_a_trained_network() -> None:
    rises = []
    for width in (8, 128):
        net = chain(width=width)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(300):
            optimizer.zero_grad()
            cross_entropy(net(X), Y).backward()
            optimizer.step()
        rises.append(value(measure(net), "rise"))
    assert rises[1] < rises[0] / 4


def test_halves_are_the_same_at_each_event_and_others_for_another_seed() -> None:
    net = chain()
    assert value(measure(net), "rise") == value(measure(net), "rise")
    assert value(measure(net, seed=1), "rise") != value(measure(net), "rise")


def test_loss_that_is_not_finite_has_no_bound() -> None:
    class Diverges(Supervised):
        def on_train_batch_end(self, *arguments: Any) -> None:
            nn.init.constant_(self.net[4].weight, float("nan"))

    probe = DropoutStability(schedule=AtFitEnd())
    with pytest.warns(UserWarning, match="dropout/flag/nonfinite"):
        trainer(max_steps=1, callbacks=[probe]).fit(Diverges(chain()), loader(X, Y))
    assert probe.history[-1]["dropout/flag/nonfinite"] == 1
    assert not {"dropout/rise", "dropout/rise_best", "dropout/suffix_max", "dropout/bound"} & probe.history[-1].keys()
