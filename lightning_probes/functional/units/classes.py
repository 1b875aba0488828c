"""From the evidence of a pass to groups of units that can be exchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_probes.functional.units.evidence import random_codes, sums_of_codes
from lightning_probes.functional.units.groups import Axis, Group
from lightning_probes.functional.units.rules.contractions import PRODUCER, READER
from lightning_probes.functional.units.trace import USED, Traced


def groups_of(traced: Traced) -> list[Group]:
    """Groups of units with equally many nodes of each kind, where a kind is an axis of a tensor and a colour.

    Indices that the pass did not use, such as embeddings of positions beyond those of the samples, are in no group.
    """
    evidence, names = traced.evidence, _names(traced.nodes)
    axis_of, index_of = (torch.full((evidence.nodes,), -1, device="cpu") for _ in range(2))
    for number, (axis, *_) in enumerate(names):
        nodes = traced.nodes[axis]
        axis_of[nodes], index_of[nodes] = number, torch.arange(len(nodes), device="cpu")

    unit = evidence.components()
    colours, colour = torch.unique(evidence.colours(), return_inverse=True)
    kinds = torch.unique((axis_of + 1) * len(colours) + colour, return_inverse=True)[1]
    codes = random_codes(int(kinds.max()) + 1 if len(kinds) else 0)
    likeness = sums_of_codes(evidence.nodes, unit, codes[kinds])[unit]
    # Units of several nodes of a kind are alike if these have met alike: in pairs, say, or each with the next one.
    likeness = 3 * likeness + evidence.meetings(unit, _slots(unit, kinds))

    members = ((axis_of >= 0) & evidence.marked(USED)).nonzero().flatten()
    for key in (kinds, unit, likeness):
        members = members[torch.argsort(key[members], stable=True)]
    parts = members.split(torch.unique_consecutive(likeness[members], return_counts=True)[1].tolist())  # type: ignore[no-untyped-call]
    tables = [_readable(part.reshape(len(torch.unique(unit[part])), -1)) for part in parts]
    marks = {mark: evidence.marked(mark) for mark in (PRODUCER, READER)}
    groups, counts = [], Counter[str]()
    for table in sorted((table for table in tables if len(table) > 1), key=lambda table: int(table.min())):
        slices: dict[Axis, Tensor] = {}
        roles: dict[str, list[Axis]] = {PRODUCER: [], READER: []}
        for number in torch.unique(axis_of[table[0]]).tolist():
            nodes = table[:, axis_of[table[0]] == number]
            for axis in names[number]:
                slices[axis] = index_of[nodes]
                for mark, axes in roles.items():
                    if bool(marks[mark][nodes].any()):
                        axes.append(axis)
        module = _module((roles[PRODUCER] or list(slices))[0])
        counts[module] += 1
        name = module if counts[module] == 1 else f"{module}#{counts[module]}"
        groups.append(Group(name, slices, tuple(roles[PRODUCER]), tuple(roles[READER])))
    return groups


def _slots(unit: Tensor, kinds: Tensor) -> Tensor:
    """The place of each node among those of its unit, by kind."""
    order = torch.argsort(kinds, stable=True)
    order = order[torch.argsort(unit[order], stable=True)]
    sizes = torch.unique_consecutive(unit[order], return_counts=True)[1]
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order), device="cpu") - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return slots


def _readable(table: Tensor) -> Tensor:
    """A table of nodes, a row for each unit, whose columns are in the order of the state."""
    return table[:, torch.argsort(table[0])]


def _names(nodes: Mapping[Axis, Tensor]) -> list[list[Axis]]:
    """Axes with the same nodes: those of one tensor that the state has under several names."""
    found: dict[int, list[Axis]] = {}
    for axis, of_axis in nodes.items():
        found.setdefault(id(of_axis), []).append(axis)
    return list(found.values())


def _module(axis: Axis) -> str:
    """The module of a tensor, or the tensor's own name if it belongs to the outermost module."""
    module, _, name = axis[0].rpartition(".")
    return module or name
