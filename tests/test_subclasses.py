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
from lightning_probes.testing.zoo.data import labelled
from lightning_probes.testing.zoo.modules import Supervised
from tests.tester import PROBES, fit, probe


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

    assert len(found.history) == len(expected.history) == 3
    for entry, other in zip(found.history, expected.history, strict=True):
        numbers = {key: value for key, value in entry.items() if "seconds" not in key and key != "probes/overhead"}
        assert numbers == pytest.approx({key: other[key] for key in numbers}, rel=1e-5, abs=1e-7)


class Plain(Supervised):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
