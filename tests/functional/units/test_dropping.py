from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_probes.functional.units.dropping import (
    has_one_producer,
    layers_of,
    number_dropped,
    random_kept,
    without_units,
)
from lightning_probes.functional.units.groups import Axis, Group


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def group(name: str, size: int, reader: Axis, width: int = 1) -> Group:
    rows, columns = torch.arange(size)[:, None], torch.arange(size * width).reshape(size, width)
    producer = (f"{name}.weight", 0)
    return Group(name, {producer: rows, (f"{name}.bias", 0): rows, reader: columns}, (producer,), (reader,))


def network(activation: nn.Module, width: int = 12) -> tuple[nn.Sequential, dict[str, Tensor], list[Group]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, width), activation, nn.Linear(width, width), activation, nn.Linear(width, 3))
    groups = [group("0", width, ("2.weight", 1)), group("2", width, ("4.weight", 1))]
    return net, {name: parameter.detach() for name, parameter in net.named_parameters()}, groups


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Sigmoid()])
def test_dropped_units_pass_nothing_on_and_the_others_twice_as_much(activation: nn.Module) -> None:
    net, state, groups = network(activation)
    inputs, kept = torch.randn(7, 5, generator=draws()), random_kept(groups, 0.5, draws(3))

    found = functional_call(net, without_units(state, groups, kept), inputs)

    for layer, each in ((1, groups[0]), (3, groups[1])):
        factor = kept[each.name].float() * 2
        net[layer] = nn.Sequential(net[layer])  # a hook of its own, though the activation is one module
        net[layer].register_forward_hook(lambda module, inputs, output, factor=factor: output * factor)
    torch.testing.assert_close(found, functional_call(net, state, inputs))


def test_network_with_every_unit_doubled_needs_one_of_each() -> None:
    net, state, _ = network(nn.ReLU())
    doubled, inputs = {}, torch.randn(7, 5, generator=draws())
    for name, tensor in state.items():
        rows = tensor if name.startswith("4") else tensor.repeat_interleave(2, 0)
        into = name in ("2.weight", "4.weight")
        doubled[name] = rows.repeat_interleave(2, 1) / 2 if into else rows
    twice, _, groups = network(nn.ReLU(), width=24)
    one_of_each = {each.name: torch.arange(24) % 2 == 0 for each in groups}

    found = functional_call(twice, without_units(doubled, groups, one_of_each), inputs)

    torch.testing.assert_close(found, functional_call(net, state, inputs), rtol=0, atol=1e-6)


def test_flattened_feature_map_loses_all_columns_of_a_unit() -> None:
    each = group("conv", 3, ("fc.weight", 1), width=4)
    found = without_units({"fc.weight": torch.ones(1, 12)}, [each], {"conv": torch.tensor([True, False, False])})
    assert found["fc.weight"].tolist() == [[3.0] * 4 + [0.0] * 8]


def test_nothing_dropped_is_the_same_bit_for_bit() -> None:
    _, state, groups = network(nn.ReLU())
    found = without_units(state, groups, random_kept(groups, 0.0, draws()))
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_kept_units_keep_their_weights_without_rescaling() -> None:
    _, state, groups = network(nn.ReLU())
    kept = random_kept(groups, 0.5, draws())
    found = without_units(state, groups, kept, rescale=False)["4.weight"]
    assert torch.equal(found[:, kept["2"]], state["4.weight"][:, kept["2"]])
    assert not found[:, ~kept["2"]].any()


@pytest.mark.parametrize(
    ("units", "fraction", "dropped"), [(8, 0.5, 4), (5, 0.5, 3), (1, 0.5, 0), (10, 0.3, 3), (4, 0.99, 3), (6, 0.0, 0)]
)
def test_share_of_the_units_is_dropped_and_one_stays(units: int, fraction: float, dropped: int) -> None:
    assert number_dropped(units, fraction) == dropped
    kept = random_kept([group("0", units, ("1.weight", 1))], fraction, draws())["0"]
    assert int((~kept).sum()) == dropped


def test_heads_that_one_weight_reads_are_one_layer() -> None:
    heads = [group("attention", 4, ("out.weight", 1)), group("attention#2", 4, ("out.weight", 1))]
    unread = Group("queries", {("in.weight", 0): torch.arange(4)[:, None]}, (("in.weight", 0),))
    layers = layers_of([*heads, unread, group("mlp", 6, ("last.weight", 1))])
    assert [(layer.name, len(layer.groups)) for layer in layers] == [("attention", 2), ("mlp", 1)]


def test_weights_of_one_module_are_one_producer_and_modules_of_a_stream_are_several() -> None:
    rows = torch.arange(4)[:, None]

    def written_by(*names: str) -> Group:
        return Group("", {(name, 0): rows for name in names}, tuple((name, 0) for name in names))

    assert has_one_producer(written_by("rnn.weight_ih_l0", "rnn.weight_hh_l0"))
    assert not has_one_producer(written_by("embed.weight", "block.out.weight"))
