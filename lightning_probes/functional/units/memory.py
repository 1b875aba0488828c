"""The labels of all tensors of a pass, also where tensors share memory and are written to in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_probes.functional.units.evidence import Evidence
from lightning_probes.functional.units.labels import Labels


class Memory:
    """Labels by tensor, and the calls that it depends on.

    Tensors are kept alive, so that neither their identity nor their memory is reused: the memory of a pass whose
    activations are kept for a gradient.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._labels: dict[int, Labels] = {}
        self._sources: dict[int, frozenset[int]] = {}
        self._stale: dict[int, list[Tensor]] = {}
        self._sharing: dict[int, list[Tensor]] = {}
        self._older: set[int] = set()
        self._kept: list[Tensor] = []

    def labels(self, tensor: Tensor) -> Labels:
        """Labels of a tensor; bare if it is older than the pass and not part of the state."""
        if id(tensor) not in self._labels:
            self._meet_older(tensor)
        if id(tensor) in self._stale:
            for factor in self._stale.pop(id(tensor)):
                self._evidence.fix(factor)
            self._labels[id(tensor)] = Labels(tuple(tensor.shape))
        return self._labels[id(tensor)]

    def sources(self, tensor: Tensor) -> frozenset[int]:
        """The calls that returned the tensor, or wrote to memory that it shares."""
        return self._sources.get(id(tensor), frozenset())

    def is_older(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor was there before the pass: views of it may exist that no call has returned."""
        return _storage(tensor) in self._older

    def put_older(self, tensor: Tensor, labels: Labels) -> None:
        """Labels of a tensor that was there before the pass."""
        self._older.add(_storage(tensor))
        self._put(tensor, labels)

    def put(self, tensor: Tensor, labels: Labels) -> None:
        """Labels of a tensor that the current call returned."""
        self._put(tensor, labels)
        self._sources[id(tensor)] = frozenset({self._evidence.call})

    def _put(self, tensor: Tensor, labels: Labels) -> None:
        self._stale.pop(id(tensor), None)
        if id(tensor) not in self._labels:
            self._kept.append(tensor)
            self._sharing.setdefault(_storage(tensor), []).append(tensor)
        self._labels[id(tensor)] = labels

    def write(self, tensor: Tensor, labels: Labels) -> None:
        """Labels of a tensor that the current call wrote to in place.

        Tensors at the same place have the same labels from now on. Tensors that share some of its entries are stale:
        if they are used again, all units that they hold, old and new, are fixed.
        """
        if self.is_older(tensor):
            for factor in labels.factors:
                self._evidence.fix(factor)
        for other in self._sharing[_storage(tensor)]:
            if other is tensor:
                continue
            if _same_place(other, tensor):
                self.put(other, labels)
            elif _overlap(other, tensor):
                self._spoil(other, labels.factors)
        self.put(tensor, labels)

    def spoil(self, tensor: Tensor) -> None:
        """The current call wrote to a tensor what no rule describes."""
        for other in self._sharing[_storage(tensor)]:
            if other is tensor or _overlap(other, tensor):
                self._spoil(other, ())

    def _spoil(self, tensor: Tensor, written: Sequence[Tensor]) -> None:
        held = self._labels[id(tensor)].factors
        self._stale.setdefault(id(tensor), []).extend((*held, *written))
        self._sources[id(tensor)] = self.sources(tensor) | {self._evidence.call}

    def _meet_older(self, tensor: Tensor) -> None:
        """A tensor that no operation has returned: one from before the pass, or another handle of a known one."""
        storage = _storage(tensor)
        labels, sources = Labels(tuple(tensor.shape)), frozenset[int]()
        for other in self._sharing.get(storage, []):
            if _same_place(other, tensor):
                labels, sources = self.labels(other), self.sources(other)
                break
            if _overlap(other, tensor):
                sources |= self.sources(other)
                for factor in self.labels(other).factors:
                    self._evidence.fix(factor)
        self.put_older(tensor, labels)
        self._sources[id(tensor)] = sources


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own, such as a sparse one
        return -1


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _same_place(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.layout == other.layout == torch.strided and _place(one) == _place(other))


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one memory share an entry."""
    if one.numel() == 0 or other.numel() == 0:
        return False
    if one.dtype != other.dtype or not one.layout == other.layout == torch.strided:
        return True
    ends = [
        tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        for tensor in (one, other)
    ]
    if one.storage_offset() >= ends[1] or other.storage_offset() >= ends[0]:
        return False
    touched = torch.zeros(max(ends), dtype=torch.bool, device="cpu")
    first, second = (touched.as_strided(t.shape, t.stride(), t.storage_offset()) for t in (one, other))
    first.fill_(True)
    return bool(second.any())


def number(state: Mapping[str, Tensor], evidence: Evidence, memory: Memory) -> dict[tuple[str, int], Tensor]:
    """Give the state its nodes, one for each index along each axis.

    Returns:
        The nodes along each axis. One tensor under two names has one set of nodes.
    """
    nodes: dict[tuple[str, int], Tensor] = {}
    first: dict[int, str] = {}
    for name, tensor in state.items():
        original = first.setdefault(id(tensor), name)
        if original != name:
            nodes.update({(name, axis): nodes[original, axis] for axis in range(tensor.ndim)})
            continue
        factors = []
        for axis, size in enumerate(tensor.shape):
            nodes[name, axis] = evidence.new_nodes(size)
            if size > 1:
                factors.append(nodes[name, axis].reshape([size if k == axis else 1 for k in range(tensor.ndim)]))
        memory.put_older(tensor, Labels(tuple(tensor.shape), tuple(factors), is_state=True))
    return nodes
