"""Operations that move entries to other positions: views, copies, parts, tensors put together, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_probes.functional.units.evidence import Evidence
from lightning_probes.functional.units.labels import Labels, axes_of, compact, depends, narrow
from lightning_probes.functional.units.rules.call import Call, NoRuleError, Rule
from lightning_probes.functional.units.rules.meetings import meet


def copied(call: Call) -> list[Labels]:
    """All entries at the same positions."""
    x = call.input
    if tuple(call.outputs[0].shape) != x.shape:
        raise NoRuleError
    return [x]


def assigned(call: Call) -> list[Labels]:
    """`copy_`: the entries of another tensor, broadcast."""
    source = call.tensor("src")
    shape = tuple(call.outputs[0].shape)
    padded = source.padded(len(shape))
    return [Labels(shape, padded.factors, source.uniform)]


def filled(call: Call) -> list[Labels]:
    """One number in all entries."""
    return [Labels(tuple(output.shape), uniform=True) for output in call.outputs]


def blank(call: Call) -> list[Labels]:
    """Memory that is written to later on."""
    return []


def reshaped(call: Call) -> list[Labels]:
    """Entries in the same order in another shape."""
    x, shape = call.input, tuple(call.outputs[0].shape)
    blocks = _blocks(x.shape, shape)
    factors = []
    for factor in x.factors:
        old, new = [1] * len(x.shape), [1] * len(shape)
        for before, after in blocks:
            if depends(factor, *before):
                old[before.start : before.stop] = x.shape[before.start : before.stop]
                new[after.start : after.stop] = shape[after.start : after.stop]
        factors.append(factor.expand(old).reshape(new))
    return [Labels(shape, compact(factors), x.uniform, x.is_state)]


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """Neighbouring axes that a reshape turns into others, as few at a time as it can be done with."""
    blocks, start, stop = [], (0, 0), [0, 0]
    while start != (len(old), len(new)):
        sizes = [math.prod(old[start[0] : stop[0]]), math.prod(new[start[1] : stop[1]])]
        if stop[0] < len(old) and (stop[0] == start[0] or sizes[0] < sizes[1]):
            stop[0] += 1
        elif stop[1] < len(new) and (stop[1] == start[1] or sizes[1] < sizes[0]):
            stop[1] += 1
        elif sizes[0] != sizes[1]:
            raise NoRuleError
        else:
            blocks.append((range(start[0], stop[0]), range(start[1], stop[1])))
            start = stop[0], stop[1]
    return blocks


def moved(call: Call) -> list[Labels]:
    """All entries at positions that do not depend on their values: the same operation moves the nodes."""
    x = call.input
    factors = [compact(call.repeated(factor.expand(x.shape))) for factor in x.factors]
    return [call_labels(call, x, [nodes for found in factors for nodes in found])]


def call_labels(call: Call, x: Labels, factors: Sequence[Tensor], output: int = 0) -> Labels:
    """Labels of an output that holds entries of a tensor with labels `x`."""
    return Labels(tuple(call.outputs[output].shape), tuple(factors), x.uniform, x.is_state)


def parts(call: Call) -> list[Labels]:
    """Parts along an axis. What happens to a part tells its units from those of other parts."""
    x, axis = call.input, call.axis
    found: list[list[Tensor]] = [[] for _ in call.outputs]
    for factor in x.factors:
        for part, nodes in zip(found, call.repeated(factor.expand(x.shape)), strict=True):
            if depends(factor, axis):
                # `compact` drops a factor of one node, so its colour is noted here.
                call.evidence.set_apart(narrow(nodes))
            part.extend(compact([nodes]))
    return [call_labels(call, x, part, k) for k, part in enumerate(found)]


def windows(call: Call) -> list[Labels]:
    """`unfold`: overlapping parts along an axis, whose units stay at their positions."""
    x, axis = call.input, call["dimension"] % len(call.input.shape)
    for factor in x.along(axis):
        call.evidence.fix(factor)
    factors = [nodes for f in x.without(axis) for nodes in compact(call.repeated(f.expand(x.shape)))]
    return [call_labels(call, x, factors)]


def indexed(call: Call) -> list[Labels]:
    """Entries by index along some axes, whose units stay at their positions: indices may depend on data."""
    x = call.input
    indices = [call["index"]] if call["indices"] is None else list(call["indices"])
    if any(index is not None and (index.dtype == torch.bool or call.known[id(index)].factors) for index in indices):
        raise NoRuleError
    axes = [call.axis] if call["indices"] is None else [k for k, index in enumerate(indices) if index is not None]
    for factor in x.along(*axes):
        call.evidence.fix(factor)
    factors = [nodes for f in x.without(*axes) for nodes in compact(call.repeated(f.expand(x.shape)))]
    return [Labels(tuple(call.outputs[0].shape), tuple(factors), x.uniform)]


def joined(call: Call) -> list[Labels]:
    """`cat`: tensors one after the other along an axis. Along the other axes they meet."""
    evidence, shape = call.evidence, tuple(call.outputs[0].shape)
    # An empty vector may stand for a tensor of any shape.
    tensors = [labels for labels in call.operands if len(labels.shape) == len(shape) and 0 not in labels.shape]
    axis = call["dim"] % len(shape)
    ones = [1] * len(shape)

    meeting = []
    for labels in tensors:
        for factor in labels.along(axis):
            # Along further axes, units of one tensor can't follow those of another.
            evidence.tell_apart(factor, [other for other in axes_of(factor) if other != axis])
        flat = list(labels.shape)
        flat[axis] = 1
        meeting.append(Labels(tuple(flat), tuple(labels.without(axis)), labels.uniform))
    kept = list(meet(evidence, meeting, [1 if k == axis else size for k, size in enumerate(shape)]).factors)

    if any(labels.along(axis) for labels in tensors):
        pieces = []
        for labels in tensors:
            factors = labels.along(axis)
            size = labels.shape[axis]
            if factors:
                evidence.unite(factors)
                pieces.append(factors[0])
            else:
                nodes = _constant_units(evidence, torch.empty(ones), axis, size)
                pieces.append(nodes)
                if not labels.uniform:
                    evidence.fix(nodes)
        sizes = [max(piece.shape[k] for piece in pieces) for k in range(len(shape))]
        wide = [piece.expand([-1 if k == axis else size for k, size in enumerate(sizes)]) for piece in pieces]
        kept.append(torch.cat(wide, axis))
    return [Labels(shape, tuple(kept))]


def stacked(call: Call) -> list[Labels]:
    """Tensors along a new axis, which meet along their own."""
    shape = tuple(call.outputs[0].shape)
    axis = call["dim"] % len(shape)
    tensors = [
        Labels(
            (*labels.shape[:axis], 1, *labels.shape[axis:]),
            tuple(factor.unsqueeze(axis) for factor in labels.factors),
            labels.uniform,
        )
        for labels in call.operands
    ]
    result = meet(call.evidence, tensors, shape)
    return [Labels(shape, result.factors)]


def padded(call: Call) -> list[Labels]:
    """A constant around the entries: along axes of units it makes units of its own, equal to one another."""
    x, given = call.input, call["pad"]
    if min(given) < 0:
        raise NoRuleError
    margins = {len(x.shape) - 1 - k: given[2 * k : 2 * k + 2] for k in range(len(given) // 2)}
    kept = []
    for factor in x.factors:
        for axis, margin in margins.items():
            if depends(factor, axis):
                constant = _constant_units(call.evidence, factor, axis, sum(margin))
                before, after = constant.tensor_split([margin[0]], axis)
                factor = torch.cat([before, factor, after], axis)
        kept.append(factor)
    return [Labels(tuple(call.outputs[0].shape), tuple(kept))]


def _constant_units(evidence: Evidence, factor: Tensor, axis: int, count: int) -> Tensor:
    """New nodes that continue a factor along an axis, and that can be exchanged with one another."""
    sizes = [count if k == axis else size for k, size in enumerate(factor.shape)]
    nodes = evidence.new_nodes(math.prod(sizes)).reshape(sizes)
    evidence.set_apart(nodes)
    return nodes


REARRANGEMENTS: dict[str, Rule] = {
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "lift_fresh", "_to_copy", "view_as"), copied),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), reshaped),
    **dict.fromkeys(
        ("t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "flip", "roll", "repeat", "pixel_shuffle"),
        moved,
    ),
    **dict.fromkeys(("slice", "select", "split", "split_with_sizes", "unbind", "unsafe_split"), parts),
    **dict.fromkeys(("unsafe_split_with_sizes", "unsafe_chunk", "chunk"), parts),
    "unfold": windows,
}
"""Rules of operations that do nothing but rearrange one tensor."""

RULES: dict[str, Rule] = {
    **REARRANGEMENTS,
    **dict.fromkeys(("zeros", "ones", "full", "scalar_tensor", "zeros_like", "ones_like", "full_like"), filled),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "fill", "zero"), filled),
    **dict.fromkeys(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"), blank),
    "copy": assigned,
    **dict.fromkeys(("index", "index_select"), indexed),
    "cat": joined,
    "stack": stacked,
    "constant_pad_nd": padded,
}
