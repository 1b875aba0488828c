"""Choosing layers and looking at them, as any callback of features does."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_probes.functional.features.feature_matrix import Tokens
from lightning_probes.functional.features.pooling import TokenPooling
from lightning_probes.probing.data.drawing import Drawing
from lightning_probes.probing.isolation.twin import Twin
from lightning_probes.probing.layer_features import choose_layers, pooled, unpooled
from lightning_probes.probing.objective import Objective
from lightning_probes.probing.view import ModelView

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


class Looped(nn.Module):
    """Calls one layer three times, overwrites what it returns, and has a layer that need not run."""

    def __init__(self, skips: bool = False) -> None:
        super().__init__()
        self.skips = skips
        self.cell, self.act, self.extra = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)
        self.constant = nn.Embedding(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.constant(torch.zeros(len(x), dtype=torch.long))
        for _ in range(3):
            x = self.act(self.cell(x))
        return x if self.skips else self.extra(x)


def view_of(module: nn.Module) -> ModelView:
    objective = Objective(lambda module, batch: module(batch[0]).square().mean())
    return ModelView(Twin(module), objective, {"train": Drawing(12, 6).draw(TensorDataset(X))})


def test_calls_of_one_module_are_layers_of_their_own_and_auto_leaves_out_what_says_nothing() -> None:
    torch.manual_seed(0)
    chosen = choose_layers(view_of(Looped()), "auto")
    assert dict(chosen.widths) == {f"{name}{call}": 4 for call in ("", "#2", "#3") for name in ("cell", "act")} | {
        "extra": 2
    }
    assert chosen.usable == 7


@pytest.mark.parametrize(
    ("layers", "names"),
    [(["cell#2"], ["cell#2"]), (["act*"], ["act", "act#2", "act#3"]), (["extra", "cell"], ["cell", "extra"])],
)
def test_names_and_globs_choose_in_forward_order(layers: list[str], names: list[str]) -> None:
    assert [*choose_layers(view_of(Looped()), layers).widths] == names


def test_features_are_those_at_the_moment_when_the_layer_returns() -> None:
    torch.manual_seed(0)
    module = Looped()
    view = view_of(module)
    layers = choose_layers(view, ["cell", "act"])
    found = layers.look(view, view.batches()[1], Tensor.clone)
    x = view.batches()[1].content[0]
    torch.testing.assert_close(found["cell"], module.cell(x))  # which ReLU has overwritten since
    torch.testing.assert_close(found["act"], module.cell(x).relu())
    assert not any(tensor.requires_grad for tensor in found.values())


def test_other_parameters_give_other_features_and_leave_the_model_as_it_is() -> None:
    torch.manual_seed(0)
    module = Looped()
    view, weight = view_of(module), module.cell.weight.detach().clone()
    found = choose_layers(view, ["cell"]).look(
        view, view.batches()[0], Tensor.clone, {"cell.weight": torch.zeros(4, 4)}
    )
    torch.testing.assert_close(found["cell"], module.cell.bias.detach().expand(6, 4))
    assert torch.equal(module.cell.weight, weight)


def test_a_layer_that_a_pass_does_not_run_is_missing() -> None:
    module = Looped()
    view = view_of(module)
    layers = choose_layers(view, ["cell", "extra"])
    module.skips = view.module.skips = True
    assert layers.look(view, view.batches()[0], Tensor.clone).keys() == {"cell"}


def test_auto_chooses_again_what_it_chose_before() -> None:
    layers = choose_layers(view_of(Looped()), "auto", before=["constant", "act", "gone"])
    assert [*layers.widths] == ["constant", "act"]


def test_a_layer_with_other_rows_is_refused_by_its_name() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Flatten(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.turn(x)

    with pytest.raises(MisconfigurationException, match="'turn' returns 24 rows for 6 samples"):
        choose_layers(view_of(Transposed()), ["turn"])
    with pytest.raises(MisconfigurationException, match="no layer returns one row for each of 6 samples"):
        choose_layers(view_of(Transposed()), "auto")


class Mixed(nn.Module):
    """A convolution of a signal, then tokens, whose outputs have three axes both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.embed = nn.Conv1d(1, 8, 1), nn.ReLU(), nn.Linear(8, 6)
        self.constant = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x[:, None]))  # (n, 8 channels, 4 positions)
        return self.embed(x.mT)  # (n, 4 tokens, 6 channels)


def test_pooling_averages_positions_of_a_convolution_and_tokens_and_never_mixes_channels() -> None:
    torch.manual_seed(0)
    module = Mixed()
    view = view_of(module)
    layers = choose_layers(view, "auto", pooled("auto", 16))
    assert dict(layers.widths) == {"conv": 16, "act": 16, "embed": 12}
    found = layers.look(view, view.batches()[0], Tensor.clone)
    act = module.conv(view.batches()[0].content[0][:, None]).relu()
    torch.testing.assert_close(found["act"], act.unflatten(2, (2, 2)).mean(3).flatten(1))
    torch.testing.assert_close(found["embed"], module.embed(act.mT).unflatten(1, (2, 2)).mean(2).mT.flatten(1))


@pytest.mark.parametrize(("tokens", "width"), [("mean", 6), ("cls", 6)])
def test_one_token_or_their_mean(tokens: TokenPooling, width: int) -> None:
    torch.manual_seed(0)
    module = Mixed()
    view = view_of(module)
    layers = choose_layers(view, ["embed", "conv"], pooled(tokens, 256))
    assert layers.widths["embed"] == width
    embedded = module(view.batches()[0].content[0])
    found = layers.look(view, view.batches()[0], Tensor.clone)["embed"]
    torch.testing.assert_close(found, embedded.mean(1) if tokens == "mean" else embedded[:, 0])


@pytest.mark.parametrize("tokens", ["flatten", "mean"])
def test_a_container_counts_as_its_last_layer_however_its_tokens_are_read(tokens: Tokens) -> None:
    net = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Sequential(nn.Linear(2, 3)))
    assert "1.0" in choose_layers(view_of(net), "auto", unpooled(tokens)).widths
    assert "1" not in choose_layers(view_of(net), "auto", unpooled(tokens)).widths
