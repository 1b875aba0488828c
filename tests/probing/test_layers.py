"""Layers by name: chosen by exact names and globs, and each with a key of its own."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_probes import FisherTrace, InitInterpolation, LayerCKA, Sharpness
from lightning_probes.probing.layers import by_layer, layer_keys, select_layers, watch_layers
from lightning_probes.testing.zoo.data import labelled
from lightning_probes.testing.zoo.modules import Supervised


@pytest.mark.parametrize(
    ("patterns", "names", "chosen"),
    [
        (["block[0]"], ["block[0]", "block0"], ["block[0]"]),
        (["block[0]"], ["block0", "block1"], ["block0"]),  # a glob where no layer has the name
        (["a*"], ["a*", "ab"], ["a*"]),
        (["a*", "a?"], ["a*", "ab"], ["a*", "ab"]),
        (["?", "b"], ["a", "b", "?"], ["b", "?"]),
    ],
)
def test_exact_name_stands_for_itself_alone(patterns: list[str], names: list[str], chosen: list[str]) -> None:
    assert select_layers(patterns, names) == chosen


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["net.0", "net.1", "head"], ["net/0", "net/1", "head"]),
        (["", "encoder"], ["root", "encoder"]),
        (["a/b", "a.b"], ["a/b-2", "a/b"]),
        (["", "root"], ["root-2", "root"]),
        (["a/b", "a.b", "a/b-2"], ["a/b-2", "a/b", "a/b-2-2"]),
    ],
)
def test_ordinary_names_keep_their_keys_and_others_give_way(names: list[str], keys: list[str]) -> None:
    assert [layer_keys(names)[name] for name in names] == keys


@given(st.lists(st.text("ab./-2_se", max_size=5), unique=True))
def test_no_two_layers_share_a_key(names: list[str]) -> None:
    assert len(set(layer_keys(names).values())) == len(names)
    keys = layer_keys(names, errors=True)
    logged = Counter(key for plain in keys.values() for key in (plain, f"{plain}_se"))
    assert set(logged.values()) <= {1}


def test_nothing_of_a_layer_is_lost_beside_one_of_a_like_name() -> None:
    assert by_layer({"scale": 1, "root.weight": 2, "a.b.weight": 3, "a/b.weight": 4}) == {
        "root-2": {"scale": 1}, "root": {"root.weight": 2}, "a/b": {"a.b.weight": 3}, "a/b-2": {"a/b.weight": 4},
    }  # fmt: skip


class Alike(nn.Module):
    """Layers whose names read alike in keys, and one parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.add_module("net[0]", nn.Linear(4, 8))
        self.a = nn.ModuleDict({"b": nn.Linear(8, 8), "b_se": nn.Linear(8, 8)})
        self.add_module("a/b", nn.Linear(8, 8))
        self.add_module("root", nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self._modules["net[0]"], *self.a.values(), self._modules["a/b"]):
            x = torch.tanh(layer(x))  # type: ignore[misc]
        return self.scale * self._modules["root"](x)  # type: ignore[misc]


class Classifier(Supervised):
    """With the layers at its root."""

    def __init__(self) -> None:
        super().__init__(Alike())


SMALL = {"num_samples": 24, "micro_batch_size": 12}
LAYERS = 6


def layer_scalars(results: dict[str, object], prefix: str) -> list[str]:
    return [key for key in results if key.startswith(f"{prefix}/layer/")]


def test_each_layer_of_each_probe_has_a_result_of_its_own() -> None:
    torch.manual_seed(0)
    module, data = Classifier(), labelled(4)
    fisher = FisherTrace(per_layer=True, **SMALL).evaluate(module, data)
    sharp = Sharpness(quantities=("lambda_max", "trace"), per_layer=True, **SMALL).evaluate(module, data)
    similar = LayerCKA(per_layer=True, **SMALL).evaluate(module, data, init_state=module.state_dict())

    for results, prefix in ((fisher, "fisher"), (sharp, "sharpness/lambda_max"), (sharp, "sharpness/trace")):
        assert len(layer_scalars(results, prefix)) == LAYERS
    assert len(layer_scalars(similar, "cka")) == len(similar["cka/to_init"].row_labels)  # type: ignore[union-attr]
    total = sum(fisher[key].value for key in layer_scalars(fisher, "fisher"))  # type: ignore[union-attr]
    assert total == pytest.approx(fisher["fisher/trace"].value, rel=1e-5)  # type: ignore[union-attr]


def test_layer_whose_name_reads_like_a_glob_is_chosen_by_its_name() -> None:
    torch.manual_seed(0)
    module, data = Classifier(), labelled(4)
    similar = LayerCKA(layers=["net.net[0]", "net.a.*"], **SMALL).evaluate(module, data)
    assert similar["cka/layers"].row_labels == ("net.net[0]", "net.a.b", "net.a.b_se")  # type: ignore[union-attr]
    line = InitInterpolation(layers=["net.net[0]"], num_alphas=2, **SMALL)
    assert "interpolation/loss" in line.evaluate(module, data, init_state=module.state_dict())


def test_calls_of_a_layer_are_told_from_a_layer_of_that_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.add_module("a#2", nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self._modules["a#2"](self.a(self.a(x)))  # type: ignore[misc]

    seen: list[str] = []
    module = Twice()
    with watch_layers(module, lambda name, _: seen.append(name)):
        module(torch.ones(2, 4))
    assert seen == ["a", "a##2", "a#2"]


LARGE = {"micro_batch_size": 64, "num_samples": 4096}


@pytest.mark.parametrize(("samples", "arguments"), [(3, {}), (3, LARGE), (1, {})])
def test_too_few_samples_for_cka_is_what_is_said(samples: int, arguments: dict[str, int]) -> None:
    data = TensorDataset(*(tensor[:samples] for tensor in labelled(4).tensors))
    with pytest.raises(Exception, match=rf"data has {samples} samples, .*: leave LayerCKA out, or pass other data="):
        LayerCKA(**arguments).evaluate(Classifier(), data)


def test_too_few_samples_asked_for_are_told_the_argument() -> None:
    with pytest.raises(Exception, match=r"one has 3 of the 3 in total: .*num_samples="):
        LayerCKA(num_samples=3).evaluate(Classifier(), labelled(4))
