"""Operations that write to positions given by an index along one axis, such as the messages to the nodes of a graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_probes.functional.units.labels import Labels
from lightning_probes.functional.units.rules.call import Call, NoRuleError, Rule
from lightning_probes.functional.units.rules.meetings import meet


def scattered(call: Call) -> list[Labels]:
    """Entries of a tensor go to positions along an axis. Along the other axes they meet what is there.

    Units along the axis stay at their positions, because the index may depend on data.
    """
    axis, index, operands = call.axis, call["index"], [call.input, call.labels("source") or call.tensor("src")]
    others = [k for k in range(len(call.input.shape)) if k != axis and any(x.along(k) for x in operands)]
    if call.known[id(index)].factors or not _sends_slices(index, call.input.shape, others):
        raise NoRuleError
    meeting = []
    for labels in operands:
        for factor in labels.along(axis):
            call.evidence.fix(factor)
        flat = tuple(1 if k == axis else size for k, size in enumerate(labels.shape))
        meeting.append(Labels(flat, tuple(labels.without(axis)), labels.uniform))
    if meeting[0].shape != meeting[1].shape:
        raise NoRuleError
    return [call.labelled(*meet(call.evidence, meeting, meeting[0].shape).factors)]


def _sends_slices(index: Tensor, shape: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether an index sends all entries along some axes to the same position."""
    if index.ndim < 2:  # one position for each slice
        return True
    return all(index.shape[k] == shape[k] and bool((index == index.narrow(k, 0, 1)).all()) for k in axes)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("index_add", "index_copy", "index_reduce"), scattered),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), scattered),
}
