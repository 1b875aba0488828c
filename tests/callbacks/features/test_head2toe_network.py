"""The network that Head2Toe makes: it predicts, saves and loads, and runs in a Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, normalize

from lightning_probes import Head2ToeNetwork, head2toe
from tests.callbacks.features.test_head2toe import blind, places
from tests.callbacks.models import Supervised, loader, trainer


def made(**arguments: Any) -> tuple[nn.Sequential, Head2ToeNetwork, Tensor, Tensor]:
    x, third = places(500)
    backbone = blind(classes=7)  # trained on something else
    network = head2toe(backbone, loader(x[:200], third[:200]), loader(x[200:300], third[200:300]), **arguments)
    return backbone, network, x[300:], third[300:]


def test_it_predicts_what_the_last_layer_can_not_know() -> None:
    _, network, x, third = made()

    assert (network(x).argmax(1) == third).float().mean() > 0.95
    assert network.accuracy > 0.95
    assert network.residual <= 1e-3
    assert sum(network.relevance.values()) == pytest.approx(1)
    assert network.relevance["0"] + network.relevance["1"] > 0.9


def test_logits_are_those_of_a_head_on_pooled_unit_features() -> None:
    backbone, network, x, _ = made(layers=["1", "4"], fraction=1.0, max_features=24)
    with torch.no_grad():
        hidden = backbone[:2](x)
        rows = torch.cat([normalize(adaptive_avg_pool1d(hidden, 4).flatten(1)), normalize(backbone(x))], 1)

    torch.testing.assert_close(network(x), rows @ network.weight.mT + network.bias, rtol=1e-4, atol=1e-4)


def test_the_module_is_copied_and_all_of_the_network_is_frozen() -> None:
    backbone, network, x, _ = made()
    before = network(x)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    nn.init.zeros_(backbone[0].weight)

    assert torch.equal(network.train()(x), before)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not backbone[0]._forward_hooks
    assert not network.backbone[0]._forward_hooks


def test_a_saved_network_loads_into_a_shell_around_another_backbone(tmp_path: Path) -> None:
    _, network, x, _ = made()
    torch.save(network.state_dict(), tmp_path / "network.pt")
    other = blind(classes=7)
    nn.init.normal_(other[0].weight)

    shell = Head2ToeNetwork(other)
    with pytest.raises(RuntimeError, match="no head yet"):
        shell(x)
    shell.load_state_dict(torch.load(tmp_path / "network.pt", weights_only=True))

    assert torch.equal(shell(x), network(x))
    assert shell.relevance == network.relevance
    assert shell.accuracy == network.accuracy
    assert torch.equal(copy.deepcopy(network)(x), network(x))


def test_it_drops_into_a_trainer() -> None:
    _, network, x, third = made()
    quiet = trainer()

    (tested,) = quiet.test(network, loader(x, third), verbose=False)
    (validated,) = quiet.validate(network, loader(x, third), verbose=False)
    predicted = torch.cat(quiet.predict(network, loader(x, third)))

    accuracy = float((network(x).argmax(1) == third).float().mean())
    assert tested["test/accuracy"] == pytest.approx(accuracy)
    assert validated["val/accuracy"] == pytest.approx(accuracy)
    assert torch.equal(predicted.argmax(1), network(x).argmax(1))


def test_a_lightning_module_that_has_been_fitted_is_a_backbone() -> None:
    x, third = places(300)
    module = Supervised(blind())
    trainer(max_steps=2).fit(module, loader(x, third))

    network = head2toe(module, loader(x[:200], third[:200]), loader(x[200:], third[200:]))

    assert (network(x).argmax(1) == third).float().mean() > 0.9


def test_classes_below_zero_are_refused() -> None:
    x, third = places(60)
    with pytest.raises(MisconfigurationException, match="numbered from 0, and one is -1"):
        head2toe(blind(), loader(x, third - 1), loader(x, third))
