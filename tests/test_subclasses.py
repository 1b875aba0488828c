"""Tensors of a subclass that needs what only its own methods set, wherever a user's code may give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_probes import EveryNSteps, Probe
from lightning_probes.functional.plain import plain
from lightning_probes.testing.zoo import Fit
from lightning_probes.testing.zoo.data import labelled, loader
from lightning_probes.testing.zoo.modules import Supervised
from tests.complete import Mean
from tests.tester import EVERY, PROBES, fit, probe


class Labelled(Tensor):
    """Knows names for its rows."""

    called: Any  # `names` is an attribute of tensors before PyTorch 2.13

    def clone(self, *_: Any, **__: Any) -> Any:
        return named(super().clone(), self.called)

    def to(self, *arguments: Any, **keywords: Any) -> Any:
        return named(super().to(*arguments, **keywords), self.called)

    def reshape(self, *shape: Any) -> Any:
        return named(super().reshape(*shape), self.called)


def named(tensor: Tensor, names: Any = ()) -> Labelled:
    tensor = tensor.as_subclass(Labelled)
    tensor.called = names
    return tensor


class Naming(nn.Linear):
    """Returns tensors of which operations lose the names."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(plain(x)).as_subclass(Labelled)


class ByLayers(Supervised):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(Naming(4, 8), nn.Tanh(), Naming(8, 3)))

    def loss_of(self, batch: Any) -> Tensor:
        return F.cross_entropy(plain(self(batch[0])), batch[1])


class InItsData(Supervised):
    """Gets inputs and targets of the subclass."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))

    def loss_of(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(plain(batch[0])), plain(batch[1]))

    def forward(self, inputs: Any) -> Any:
        return self.net(plain(inputs))


class Keeps(Supervised):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
        self.seen: list[Tensor] = []

    def loss_of(self, batch: Any) -> Tensor:
        self.last = named(batch[0] * 1, ["a"])
        self.seen = [self.last, named(batch[0] * 2, ["b"])]
        return super().loss_of(batch)


def named_batches(samples: list[Any]) -> list[Tensor]:
    return [named(torch.stack(parts), ["c"]) for parts in zip(*samples, strict=True)]


MODULES: dict[str, tuple[Callable[[], Supervised], Any]] = {
    "returned by layers": (ByLayers, None),
    "in the batches": (InItsData, named_batches),
    "kept on the module": (Keeps, None),
}


@pytest.mark.parametrize("kind", PROBES)
@pytest.mark.parametrize("where", MODULES)
def test_probes_measure_as_with_plain_tensors(where: str, kind: str) -> None:
    make, collate = MODULES[where]
    data = TensorDataset(*labelled(4).tensors)

    def measured(module: Callable[[], Supervised], collate_fn: Any) -> Probe:
        each = probe(kind, schedule=EveryNSteps(4), num_samples=16)
        fit(lambda: Fit(module(), DataLoader(data, 8, collate_fn=collate_fn)), [each], max_epochs=2)
        return each

    found, expected = measured(make, collate), measured(Plain, None)

    assert_same_numbers(found, expected)


def assert_same_numbers(found: Probe, expected: Probe) -> None:
    assert len(found.history) == len(expected.history) == 3
    for entry, other in zip(found.history, expected.history, strict=True):
        numbers = {key: value for key, value in entry.items() if "seconds" not in key and key != "probes/overhead"}
        assert numbers == pytest.approx({key: other[key] for key in numbers}, rel=1e-5, abs=1e-7)


class Attends(nn.Module):
    """Attention with a skip connection, by linear layers of one kind."""

    def __init__(self, linear: type[nn.Linear], fused: bool) -> None:
        super().__init__()
        self.before, self.together, self.fused = linear(3, 4), linear(4, 12), fused

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        parts = torch.split(self.together(x), 4, -1)
        query, key, value = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in parts)
        if self.fused:
            found = F.scaled_dot_product_attention(query, key, value)
        else:
            found = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return x + found.transpose(1, 2).flatten(2)


class ByTokens(ByLayers):
    def __init__(self, linear: type[nn.Linear], fused: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(Attends(linear, fused), Mean(), linear(4, 3))


@pytest.mark.parametrize("kind", sorted(EVERY.keys() - PROBES.keys()))
@pytest.mark.parametrize("fused", [True, False])
def test_blocks_are_measured_as_with_plain_tensors(fused: bool, kind: str) -> None:
    def measured(linear: type[nn.Linear]) -> Probe:
        each = probe(kind, schedule=EveryNSteps(4), num_samples=16)
        fit(lambda: Fit(ByTokens(linear, fused), loader(labelled(5, 3))), [each], max_epochs=2)
        return each

    assert_same_numbers(measured(Naming), measured(nn.Linear))


class Plain(Supervised):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
