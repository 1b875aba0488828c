"""States in which some units pass nothing on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.units.groups import Group


@dataclass(frozen=True, eq=False)
class Layer:
    """Units of one depth, such as those of a hidden layer or of all heads of an attention.

    Attributes:
        name: That of the module that computes them.
        groups: Its groups of exchangeable units, of which one weight is the first to read.
    """

    name: str
    groups: tuple[Group, ...]


def layers_of(groups: Iterable[Group]) -> list[Layer]:
    """Sort groups into layers: those whose first reader is the same weight, in the order of the groups.

    Groups that no weight reads, such as queries and keys, are left out.

    Example:
        >>> layers_of([Group("0", {("0.weight", 0): torch.tensor([[0], [1]])}, readers=(("2.weight", 1),))])[0].name
        '0'
    """
    by_reader: dict[str, list[Group]] = {}
    for group in groups:
        if group.readers:
            by_reader.setdefault(group.readers[0][0], []).append(group)
    return [Layer(own[0].name, tuple(own)) for own in by_reader.values()]


def has_one_producer(group: Group) -> bool:
    """Whether a single module computes the units; several write to a residual stream."""
    return len({name.rpartition(".")[0] for name, _ in group.producers}) == 1


def number_dropped(units: int, fraction: float) -> int:
    """How many units to drop: the fraction, a half rounded up, but at least one unit stays.

    Example:
        >>> number_dropped(5, 0.5), number_dropped(1, 0.5)
        (3, 0)
    """
    return min(int(units * fraction + 0.5), units - 1)


def random_kept(groups: Sequence[Group], fraction: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Which units stay, drawn at random for each group.

    Args:
        groups: Groups of a module.
        fraction: Share of the units to drop; see `number_dropped`.
        generator: Of any device.

    Returns:
        By the name of the group, bool, shape `(group.size,)`, on the CPU.
    """
    kept = {}
    for group in groups:
        order = torch.randperm(group.size, generator=generator, device=generator.device).cpu()
        kept[group.name] = order >= number_dropped(group.size, fraction)
    return kept


def without_units(
    state: Mapping[str, Tensor], groups: Iterable[Group], kept: Mapping[str, Tensor], rescale: bool = True
) -> dict[str, Tensor]:
    """A state in which dropped units are not read, and the others more strongly in their place.

    The slices of the weights that read a unit are multiplied by 0, or by n/k where k of n units are kept. This is exact
    whatever stands between a unit and its readers, such as an activation or BatchNorm.

    Args:
        state: Parameters by name.
        groups: The groups to drop units of; each has readers.
        kept: Which units stay, by the name of the group.
        rescale: Whether to multiply kept units by n/k.

    Returns:
        The state with new tensors for the readers.

    Example:
        >>> group = Group("0", {("1.weight", 1): torch.tensor([[0], [1]])}, readers=(("1.weight", 1),))
        >>> without_units({"1.weight": torch.ones(1, 2)}, [group], {"0": torch.tensor([True, False])})
        {'1.weight': tensor([[2., 0.]])}
    """
    result = dict(state)
    factors: dict[tuple[str, int], Tensor] = {}  # of all groups that a weight reads, such as those of several heads
    for group in groups:
        stays = kept[group.name]
        share = len(stays) / int(stays.sum()) if rescale else 1.0
        for name, axis in group.readers:
            if name in result:
                if (name, axis) not in factors:
                    factors[name, axis] = torch.ones(result[name].shape[axis], dtype=torch.float64)
                factors[name, axis][group.slices[name, axis]] = stays[:, None].double() * share
    for (name, axis), along in factors.items():
        tensor = result[name]
        shape = [-1 if each == axis else 1 for each in range(tensor.ndim)]
        result[name] = tensor * along.to(tensor.dtype).to(tensor.device).reshape(shape)
    return result
