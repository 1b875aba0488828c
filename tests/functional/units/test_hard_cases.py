"""Modules in which units look alike, but are not: what is found must keep the function all the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lightning_probes.functional.units.finding import find_groups

from .exchanging import change, groups_found, state_of

SAMPLES = torch.randn(2, 9, generator=torch.Generator().manual_seed(3))


class Hard(nn.Module):
    """Twelve hidden units, on which something happens before they are read."""

    def __init__(self, reads: int = 12) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(9, 12), nn.Linear(reads, 4)

    def between(self, h: Tensor) -> Tensor:
        raise NotImplementedError  # each case implements it

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class WritesAPart(Hard):
    def between(self, h: Tensor) -> Tensor:
        h[:, :3] = 0
        return h


class FillsATable(Hard):
    def between(self, h: Tensor) -> Tensor:
        table = torch.zeros(12)
        table[0::2] = torch.arange(6.0).sin()
        return (h + table).relu()


class InPlace(Hard):
    def between(self, h: Tensor) -> Tensor:
        h = h.relu_()
        h += 1
        return h.mul_(2)


class RunningSum(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.cumsum(1)


class Sorted(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.sort(1)[0]


class WritesThroughAView(Hard):
    def between(self, h: Tensor) -> Tensor:
        h.view(-1, 3, 4)[:, 0].add_(1.0)
        return h.relu()


class Noise(Hard):
    def between(self, h: Tensor) -> Tensor:
        torch.manual_seed(0)
        return F.dropout(h, 0.5, training=True)


class ConstantMatrix(Hard):
    def between(self, h: Tensor) -> Tensor:
        return torch.einsum("bi,ij->bj", h, torch.eye(12) * 2)


class Mirrored(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h + h.flip(1)


class HalvesDiffer(Hard):
    def between(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, :6].relu(), h[:, 6:].tanh()], 1)


class OneUnitGates(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h * h[:, 3:4].sigmoid()


class CopiedIntoAPart(Hard):
    def between(self, h: Tensor) -> Tensor:
        wide = torch.zeros(2, 20)
        wide[:, 4:16] = h
        return wide


class BufferWithAnOldView(Hard):
    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.zeros(2, 24)
        self.view = self.memory[:, 6:18]

    def between(self, h: Tensor) -> Tensor:
        self.view.copy_(h)
        return self.memory[:, 6:18].relu() + torch.arange(12.0)


class MarginsDiffer(Hard):
    def between(self, h: Tensor) -> Tensor:
        return F.pad(F.pad(h, (4, 0), value=0.0), (0, 4), value=1.0)


class CountedPositions(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h * torch.ones(12).cumsum(0)


class UnevenCopies(Hard):
    def between(self, h: Tensor) -> Tensor:
        return torch.cat([h, h[:, :5]], 1)


class OverlappingWindows(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.unfold(1, 4, 2).sum(2)


class CountedOften(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.unfold(1, 4, 2).sum((1, 2))[:, None] + h


class Chosen(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h[:, torch.tensor([5, 1, 1, 8])]


class ChosenByData(Hard):
    def between(self, h: Tensor) -> Tensor:
        return F.one_hot(h.argmax(1), 12) * h


class Diagonal(Hard):
    def between(self, h: Tensor) -> Tensor:
        return torch.diagonal(self.last.weight[:, :4] @ h.T[:4, :].repeat(1, 2), 0)[None] + h[:, :4]


class WrongReshape(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.view(2, 3, 4).flatten(0, 1).view(3, 2, 4).transpose(0, 1).flatten(1)


class ReadByAPartOfItself(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.view(-1, 4, 3).transpose(1, 2).flatten(1) + h


class CrossedPairs(Hard):
    def between(self, h: Tensor) -> Tensor:
        left, right = h[:, [0, 6, 2]], h[:, [7, 1, 3]]
        return torch.cat([left.relu() * right.sigmoid(), h[:, 4:]], 1)


class WrittenBeforeItIsRead(Hard):
    def between(self, h: Tensor) -> Tensor:
        part = h[:, ::2]
        h.mul_(torch.arange(12.0))
        return torch.cat([part, part], 1)


class MaskedHalf(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.masked_fill(torch.arange(12) % 2 == 0, 0.5)


class ScatteredUnits(Hard):
    def between(self, h: Tensor) -> Tensor:
        return torch.zeros(2, 12).index_add_(1, torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), h)


class ScatteredByUnit(Hard):
    def between(self, h: Tensor) -> Tensor:
        to = torch.stack([torch.arange(12) % 2, 1 - torch.arange(12) % 2])
        return torch.zeros(2, 12).scatter_add_(0, to, h)


class ScatteredInPart(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.scatter(0, torch.tensor([[1] * 5, [0] * 5]), h)


class TakenBack(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.index_copy(0, torch.tensor([1, 0]), h.tanh()) + h.index_reduce(0, torch.tensor([0, 0]), h, "amax")


class Branching(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.relu() if h[0, 2] > 100 else h.tanh() * h[:, 2].mean().item()


HARD: dict[str, tuple[type[Hard], int, list[int]]] = {
    "a part is written to": (WritesAPart, 12, []),
    "a table is filled": (FillsATable, 12, []),
    "activations work in place": (InPlace, 12, [12]),
    "a running sum": (RunningSum, 12, []),
    "sorted": (Sorted, 12, []),
    "a view is written to": (WritesThroughAView, 12, []),
    "dropout is on": (Noise, 12, []),
    "a constant matrix": (ConstantMatrix, 12, []),
    "mirrored pairs": (Mirrored, 12, [6]),
    "halves have other activations": (HalvesDiffer, 12, [6, 6]),
    "one unit gates all": (OneUnitGates, 12, [11]),
    "copied into a part of zeros": (CopiedIntoAPart, 20, []),
    "a buffer with a view from before": (BufferWithAnOldView, 12, []),
    "margins of two constants": (MarginsDiffer, 20, [12, 4, 4]),
    "positions are counted": (CountedPositions, 12, []),
    "some units are copied": (UnevenCopies, 17, [5, 7]),
    "overlapping windows": (OverlappingWindows, 5, []),
    "some units count more often": (CountedOften, 12, []),
    "units chosen by index": (Chosen, 4, []),
    "units chosen by their values": (ChosenByData, 12, []),
    "a diagonal, and units that are not read": (Diagonal, 4, [8]),
    "features and samples are mixed up": (WrongReshape, 12, [4]),
    "units meet in another order, but for the first and last": (ReadByAPartOfItself, 12, [2]),
    "pairs crossed": (CrossedPairs, 11, []),
    "written to before it is read": (WrittenBeforeItIsRead, 12, []),
    "every other unit is masked": (MaskedHalf, 12, []),
    "units are added up unevenly": (ScatteredUnits, 12, []),
    "samples are exchanged, of every other unit": (ScatteredByUnit, 12, []),
    "samples are exchanged, of a part of the units": (ScatteredInPart, 12, []),
    "samples are exchanged, of all units": (TakenBack, 12, [12]),
    "Python reads one unit": (Branching, 12, [11]),
}


@pytest.mark.parametrize("name", HARD)
def test_what_is_found_keeps_the_function(name: str) -> None:
    torch.manual_seed(0)
    build, reads, sizes = HARD[name]
    module = build(reads) if reads != 12 else build()
    found = groups_found(module, SAMPLES)
    assert found.dropped == ()
    assert [group.size for group in found.groups] == sizes
    assert change(module, found, SAMPLES) < 1e-5


class ThroughPython(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h.relu() * float(h.detach().numpy()[0, 3])


class ThroughNumPy(Hard):
    def between(self, h: Tensor) -> Tensor:
        return h + torch.from_numpy(np.tanh(h.detach().numpy()))


def with_units_before(build: type[Hard], reads: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 9), build(reads))


def test_groups_of_units_that_leave_pytorch_unseen_are_dropped_and_named() -> None:
    torch.manual_seed(0)
    module = with_units_before(ThroughPython)
    found = groups_found(module, SAMPLES)
    assert found.dropped == ("3.first",)
    assert [group.name for group in found.groups] == ["0", "2"]
    assert change(module, found, SAMPLES) < 1e-5


def test_units_are_found_in_a_loss_that_is_all_rounding() -> None:
    torch.manual_seed(0)
    hidden = [nn.Linear(9, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    module = nn.Sequential(*hidden, nn.Linear(256, 4))
    targets = module(SAMPLES).detach()

    def run(state: Mapping[str, Tensor]) -> Tensor:
        return F.mse_loss(functional_call(module, dict(state), SAMPLES), targets)

    found = find_groups(state_of(module), run)
    assert [group.name for group in found.groups] == ["0", "2"]


@pytest.mark.parametrize("margin", [12.0, 17.0, 40.0])
def test_a_loss_that_is_all_rounding_lets_no_units_pass_that_leave_pytorch_unseen(margin: float) -> None:
    torch.manual_seed(0)
    module = with_units_before(ThroughPython)
    with torch.no_grad():
        (best, second), classes = (found.T for found in module(SAMPLES).topk(2, dim=1))
        for parameter in module[-1].last.parameters():  # the largest logit is above the others by the margin
            parameter *= margin / (best - second).min()

    def run(state: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(module, dict(state), SAMPLES), classes[0])

    found = find_groups(state_of(module), run)
    assert [group.name for group in found.groups] == ["0", "2"]
    assert found.dropped == ("3.first",)


def test_units_that_come_back_from_numpy_are_fixed() -> None:
    torch.manual_seed(0)
    found = groups_found(with_units_before(ThroughNumPy), SAMPLES)
    assert found.dropped == ()
    assert [group.name for group in found.groups] == ["0", "2"]


def test_operations_without_a_rule_are_named_and_cost_only_the_units_that_enter_them() -> None:
    class Model(Hard):
        def between(self, h: Tensor) -> Tensor:
            return F.pixel_unshuffle(h.view(-1, 1, 6, 2), 2).flatten(1)

    found = groups_found(with_units_before(Model), SAMPLES)
    assert found.unknown == ("aten.pixel_unshuffle.default",)
    assert [group.name for group in found.groups] == ["0", "2"]


def test_parameters_that_the_pass_does_not_use_have_no_groups() -> None:
    class Model(InPlace):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.positions = nn.Linear(12, 30), nn.Parameter(torch.randn(50, 12))

        def between(self, h: Tensor) -> Tensor:
            self.unused(h).cumsum(1)
            return h + self.positions[: len(h)]

    [group] = groups_found(Model(), SAMPLES).groups
    assert set(group.slices) == {
        ("first.weight", 0), ("first.bias", 0), ("last.weight", 1), ("positions", 1),
    }  # fmt: skip


def test_what_the_output_does_not_depend_on_does_not_count() -> None:
    class Model(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x).relu()
            hidden.cumsum(1).max()
            return self.last(hidden)

    assert [group.size for group in groups_found(Model(), SAMPLES).groups] == [12]


@pytest.mark.parametrize("output", [None, 3.0, {"loss": 1.0}])
def test_a_pass_without_tensors_is_an_error(output: object) -> None:
    with pytest.raises(ValueError, match=r"run must return a tensor.*return the logits of two samples"):
        find_groups({"weight": torch.ones(2)}, lambda state: output)
