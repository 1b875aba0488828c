"""What a pass says about units: which indices belong to one unit, and which can't be exchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from lightning_probes.functional.units.labels import axes_of


class Evidence:
    """Notes taken during a pass. Each index along each axis of a tensor of the state is a node.

    Notes are only collected; `components` and `colours` evaluate them once, when the pass is over.

    Attributes:
        nodes: Number of nodes.
        call: Number of the call that notes are about.
    """

    def __init__(self) -> None:
        self.nodes = 0
        self.call = 0
        self._united: list[tuple[int, Tensor, Tensor]] = []
        self._coloured: list[tuple[int, Tensor, Tensor]] = []
        self._marked: list[tuple[int, Tensor, str]] = []
        self._num_colours = 0

    def forget_all_but(self, calls: Set[int]) -> None:
        """Drop notes about calls that nothing depends on."""
        self._united = [note for note in self._united if note[0] in calls]
        self._coloured = [note for note in self._coloured if note[0] in calls]
        self._marked = [note for note in self._marked if note[0] in calls]

    def new_nodes(self, count: int) -> Tensor:
        """Nodes that are used for the first time."""
        self.nodes += count
        return torch.arange(self.nodes - count, self.nodes, device="cpu")

    def unite(self, factors: Sequence[Tensor]) -> None:
        """Nodes at the same position of these arrays, which broadcast, belong to one unit."""
        for factor in factors[1:]:
            if factor is not factors[0]:
                shape = torch.broadcast_shapes(factors[0].shape, factor.shape)  # type: ignore[no-untyped-call]
                first, other = factors[0].expand(shape), factor.expand(shape)
                self._united.append((self.call, first.flatten(), other.flatten()))

    def tell_apart(self, factor: Tensor, axes: Sequence[int]) -> None:
        """Nodes at different positions along the axes belong to units that can't be exchanged."""
        if not axes:
            return
        sizes = [size if axis in axes else 1 for axis, size in enumerate(factor.shape)]
        self._colour(factor, torch.arange(math.prod(sizes), device="cpu").reshape(sizes).expand(factor.shape))

    def fix(self, factor: Tensor) -> None:
        """No node of the factor can be exchanged with another one."""
        self.tell_apart(factor, axes_of(factor))

    def set_apart(self, part: Tensor) -> None:
        """The nodes of a part can't be exchanged with nodes outside it, but with one another."""
        self._colour(part, torch.zeros_like(part))

    def mark(self, mark: str, factors: Sequence[Tensor]) -> None:
        """Note a property of nodes by its name."""
        self._marked.extend((self.call, factor.flatten(), mark) for factor in factors)

    def marked(self, mark: str) -> Tensor:
        """Nodes with this mark, as a mask."""
        mask = torch.zeros(self.nodes, dtype=torch.bool, device="cpu")
        for _, nodes, found in self._marked:
            if found == mark:
                mask[nodes] = True
        return mask

    def components(self) -> Tensor:
        """For each node the lowest node of its unit."""
        left, right = _joined(self._united)
        lowest = torch.arange(self.nodes, device="cpu")
        while True:
            ends = lowest[left], lowest[right]
            lower = torch.minimum(*ends)
            # Every unit but the lowest of its neighbours joins one of them, so their number halves at least.
            joined = lowest.clone()
            for end in ends:
                joined.scatter_reduce_(0, end, lower, "amin")
            while not torch.equal(joined, joined[joined]):
                joined = joined[joined]
            if torch.equal(joined, lowest):
                return lowest
            lowest = joined

    def meetings(self, unit: Tensor, slot: Tensor) -> Tensor:
        """For each node a number that is the same for nodes of units whose slots have met alike.

        Args:
            unit: As from `components`.
            slot: The place of each node in its unit.
        """
        left, right = _joined(self._united)
        lengths = torch.tensor([len(note[1]) for note in self._united], dtype=torch.int64, device="cpu")
        events = random_codes(len(lengths)).repeat_interleave(lengths)
        slots = random_codes(2 * int(slot.max()) + 2 if len(slot) else 0) | 1
        codes = events * slots[2 * slot[left]] * slots[2 * slot[right] + 1]
        return sums_of_codes(self.nodes, unit[left], codes)[unit]

    def colours(self) -> Tensor:
        """The colour of each node: a number that two nodes share if the same calls coloured them alike."""
        nodes, colours = _joined(self._coloured)
        pairs = torch.unique(nodes * self._num_colours + colours)
        if not self._num_colours:
            return torch.zeros(self.nodes, dtype=torch.int64, device="cpu")
        codes = random_codes(self._num_colours)[pairs % self._num_colours]
        return sums_of_codes(self.nodes, pairs // self._num_colours, codes)

    def _colour(self, factor: Tensor, colours: Tensor) -> None:
        self._coloured.append((self.call, factor.flatten(), self._num_colours + colours.flatten()))
        self._num_colours += int(colours.max()) + 1 if colours.numel() else 0


def random_codes(count: int) -> Tensor:
    """64 random bits for each of some things, the same each time: sums of codes tell multisets of things apart."""
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (count,), generator=generator, device="cpu")


def sums_of_codes(count: int, owners: Tensor, codes: Tensor) -> Tensor:
    """For each owner the sum of its codes, modulo 2^64."""
    return torch.zeros(count, dtype=torch.int64, device="cpu").index_add_(0, owners, codes)


def _joined(notes: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    nothing = torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.cat([nothing, *(note[1] for note in notes)]), torch.cat([nothing, *(note[2] for note in notes)])
