"""Groups of exchangeable units, and states whose units are permuted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Axis = tuple[str, int]
"""An axis of a tensor of the state: the tensor's name, and the axis."""


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be exchanged with one another without a change of the function.

    A unit is a slice of each tensor that it touches: a row of the weight that computes it, an entry of a bias, a column
    of the weight that reads it. It is several columns where a feature map is flattened.

    Attributes:
        name: The module that computes the units, such as `layers.0.linear1`; followed by `#2`, `#3`, ... where one
            module has several groups. Unique among the groups of a module.
        slices: Indices along axes of tensors, `(tensor name, axis) -> (units, width)`, int64 on the CPU. Row k belongs
            to unit k. The columns of a row are in corresponding order.
        producers: Axes of weights along which the units are computed, such as axis 0 of a linear layer's weight.
        readers: Axes of weights along which the units are read, such as axis 1 of a linear layer's weight. Scaling
            these slices is scaling what the units pass on. Empty for units that only meet one another, such as queries
            and keys.
    """

    name: str
    slices: Mapping[Axis, Tensor]
    producers: tuple[Axis, ...] = ()
    readers: tuple[Axis, ...] = ()

    @property
    def size(self) -> int:
        """Number of units."""
        return len(next(iter(self.slices.values())))


def permuted(state: Mapping[str, Tensor], groups: Sequence[Group], permutations: Sequence[Tensor]) -> dict[str, Tensor]:
    """A state with permuted units: unit k of the result is unit `permutation[k]` of the state.

    Args:
        state: Tensors by name, such as parameters. Slices of names that are not in it are left out.
        groups: Groups of the module.
        permutations: One a group, int64, shape `(group.size,)`.

    Returns:
        The tensors in the order of the state. Those without units of the groups are the state's own.

    Example:
        >>> group = Group("0", {("0.weight", 0): torch.tensor([[0], [1]]), ("1.weight", 1): torch.tensor([[0], [1]])})
        >>> state = {"0.weight": torch.tensor([[1.0], [2.0]]), "1.weight": torch.tensor([[3.0, 4.0]])}
        >>> permuted(state, [group], [torch.tensor([1, 0])])
        {'0.weight': tensor([[2.], [1.]]), '1.weight': tensor([[4., 3.]])}
    """
    sources: dict[Axis, Tensor] = {}
    for group, permutation in zip(groups, permutations, strict=True):
        for (name, axis), indices in group.slices.items():
            if name in state:
                source = torch.arange(state[name].shape[axis], device=indices.device)
                source[indices] = indices[permutation.to(indices.device)]
                before = sources.get((name, axis))
                sources[name, axis] = source if before is None else before[source]
    result = dict(state)
    for (name, axis), source in sources.items():  # once, because each head of an attention is a group of one weight
        result[name] = result[name].index_select(axis, source.to(result[name].device))
    return result


def random_permutations(groups: Sequence[Group], generator: torch.Generator) -> list[Tensor]:
    """A random permutation for each group.

    Args:
        groups: Groups of a module.
        generator: Of the CPU.

    Returns:
        int64 tensors on the CPU, shape `(group.size,)`.
    """
    return [torch.randperm(group.size, generator=generator, device="cpu") for group in groups]
