"""Permutations of one network's units that bring it close to another network.

Two runs of one architecture may compute the same function with their units in another order. Matching finds the order
in which they are alike, by their weights (Ainsworth, Hayase & Srinivasa 2023, arXiv:2209.04836) or by their outputs
(Jordan et al. 2023, arXiv:2211.08403).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.units.assignment import assignment
from lightning_probes.functional.units.groups import Group, permuted
from lightning_probes.functional.wide import on_host, widest

_ROUNDING = 1e-12  # of an inner product of two states, relative to the product of their lengths


@dataclass(frozen=True, eq=False)
class Matching:
    """The order of the other network's units that was found.

    Attributes:
        permutations: For `permuted`, one a group: unit k goes with unit `permutation[k]` of the other network.
        sweeps: How often all groups were visited.
        converged: Whether the last visit changed nothing.
    """

    permutations: Sequence[Tensor]
    sweeps: int
    converged: bool


def match_weights(
    here: Mapping[str, Tensor],
    there: Mapping[str, Tensor],
    groups: Sequence[Group],
    generator: torch.Generator,
    start: Sequence[Tensor] | None = None,
    max_sweeps: int = 100,
) -> Matching:
    r"""Permute the units of one state such that its inner product with another is as large as can be found.

    Groups are visited one by one in random order. Given the order of all other groups, the best order of one is an
    assignment problem with gains

    .. math:: g_{kl} = \sum_{\text{slices}} \langle \text{here}_k, \text{there}_l \rangle

    and is found exactly. This ends once no visit raises the inner product, in an optimum that need not be the global
    one. Where both axes of a tensor belong to one group (a square matrix in a residual stream), the gains are those at
    the present order.

    Args:
        here: Parameters of the network that stays as it is. Without buffers: running statistics are no weights.
        there: Parameters of the network to permute, with the same names and shapes.
        groups: Groups of the module.
        generator: Of the CPU; decides the order of visits.
        start: Permutations to start from, such as those of an earlier step or of other units' outputs. None starts from
            the order as it is.
        max_sweeps: How often to visit all groups at most.

    Returns:
        The permutations. Cost: one product of two matrices and one assignment for each visit of a group.

    Example:
        >>> group = Group("0", {("0.weight", 0): torch.tensor([[0], [1]]), ("1.weight", 1): torch.tensor([[0], [1]])})
        >>> here = {"0.weight": torch.tensor([[1.0], [2.0]]), "1.weight": torch.tensor([[3.0, 4.0]])}
        >>> there = {"0.weight": torch.tensor([[2.1], [1.1]]), "1.weight": torch.tensor([[4.1, 3.1]])}
        >>> match_weights(here, there, [group], torch.Generator()).permutations
        [tensor([1, 0])]
    """
    permutations = [torch.arange(group.size) for group in groups] if start is None else list(start)
    now = permuted(there, groups, permutations)
    for sweep in range(max_sweeps):
        moved = False
        for index in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[index]
            touched = {name: now[name] for name, _ in group.slices if name in now}
            better = assignment(_gains(here, touched, group))
            candidate = permuted(touched, [group], [better])
            if _rises(here, touched, candidate):
                now |= candidate
                permutations[index] = permutations[index][better]
                moved = True
        if not moved:
            return Matching(permutations, sweep + 1, converged=True)
    return Matching(permutations, max_sweeps, converged=False)


def _gains(here: Mapping[str, Tensor], there: Mapping[str, Tensor], group: Group) -> Tensor:
    gains = on_host(0.0).new_zeros(group.size, group.size)
    for (name, axis), indices in group.slices.items():
        if name in there:
            mine, others = (_of_units(_real(state[name]), axis, indices) for state in (here, there))
            gains += on_host(mine @ others.T)
    return gains


def _real(tensor: Tensor) -> Tensor:
    """A tensor, or the real and imaginary parts of a complex one along a last axis."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _of_units(tensor: Tensor, axis: int, indices: Tensor) -> Tensor:
    """The slices of units along an axis, one unit a row."""
    slices = tensor.detach().movedim(axis, 0)[indices.flatten().to(tensor.device)]
    return slices.reshape(len(indices), -1).to(widest(tensor.device))


def _rises(here: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Whether the inner product with `here` rises by more than rounding."""
    rise, scale = on_host(0.0), on_host(0.0)
    for name, tensor in before.items():
        mine, old, new = (on_host(_real(each).flatten()) for each in (here[name], tensor, after[name]))
        rise += torch.dot(mine, new) - torch.dot(mine, old)
        scale += mine.norm() * old.norm()
    return bool(rise > _ROUNDING * scale)
