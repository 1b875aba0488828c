"""Restoring copied objects to their initial state, any number of times."""

from __future__ import annotations

import ctypes
import random
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_probes.probing.isolation.belongings import is_shared_value
from lightning_probes.probing.isolation.copying import LONG

Restore = Callable[[], object]

# A write through `.data` can't be detected. Up to this size tensors are always restored, which is cheap.
_SMALL_BYTES = 2**20


class Snapshot:
    """Restores objects that a `Copier` made: tensors and arrays, containers, attributes, generators.

    Objects get back the state in which the snapshot first saw them; tensors and arrays get the values of their
    originals.

    Args:
        made: A `Copier`'s list of pairs (original, copy). It may grow; `catch_up` adds the new pairs.

    Example:
        >>> from lightning_probes.probing.isolation.copying import Copier
        >>> copier = Copier()
        >>> copied = copier({"losses": [], "count": torch.zeros(())})
        >>> snapshot = Snapshot(copier.made)
        >>> copied["losses"].append(copied["count"].add_(1))
        >>> snapshot.restore(); copied
        {'losses': [], 'count': tensor(0.)}
    """

    def __init__(self, made: Sequence[tuple[Any, Any]]) -> None:
        self._made = made
        self._seen = 0
        self._tensors: list[tuple[Tensor, Tensor, int]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._objects: list[tuple[Any, type, dict[str, Any]]] = []
        self._restores: list[Restore] = []
        self.catch_up()

    def catch_up(self) -> None:
        """Record the objects that were added to `made` since the last call."""
        for original, copied in self._made[self._seen :]:
            if isinstance(copied, Tensor):
                self._tensors.append((original, copied, copied._version))
                if attributes := vars(copied):
                    self._containers.append((attributes, dict(attributes)))
                continue
            if type(copied) is dict or (type(copied) is set and not copied):  # the most frequent case
                if len(copied) <= LONG:
                    self._containers.append((copied, copied.copy()))
                continue
            if hasattr(copied, "__dict__"):
                attributes = vars(copied)
                if vars(copied) is attributes:  # some classes return a new dict at each call
                    self._objects.append((copied, type(copied), attributes))
                self._containers.append((attributes, dict(attributes)))
            self._restores.extend(_restores(original, copied))
        self._seen = len(self._made)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo every change."""
        for copied, kind, attributes in self._objects:
            if type(copied) is not kind:
                object.__setattr__(copied, "__class__", kind)
            if vars(copied) is not attributes:
                object.__setattr__(copied, "__dict__", attributes)
        for changing, content in self._containers:
            changing.clear()
            changing.update(content)
        for restore in self._restores:
            restore()
        with torch._C.DisableTorchFunctionSubclass():
            self._restore_tensors()

    def _restore_tensors(self) -> None:
        for i, (original, copied, version) in enumerate(self._tensors):
            if copied._version != version or copied.shape != original.shape:
                Tensor.detach_(copied).data = Tensor.clone(Tensor.detach(original))
                self._tensors[i] = (original, copied, copied._version)
            elif copied.layout == torch.strided and copied.nbytes <= _SMALL_BYTES:
                copied.data.copy_(original)
            if copied.requires_grad != (original.requires_grad and original.is_leaf):
                Tensor.requires_grad_(copied, not copied.requires_grad)
            if copied.requires_grad:
                copied.grad = None


def with_values_of_now(made: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """A `Copier`'s pairs for a snapshot that outlives the moment: it does not look at the originals, which change.

    Large tensors and arrays are not restored, because that would take one more copy of each.
    """
    return [(_value_of_now(copied), copied) for _, copied in made]


def _value_of_now(copied: Any) -> Any:
    if isinstance(copied, Tensor):
        with torch._C.DisableTorchFunctionSubclass():
            small = copied.layout == torch.strided and copied.nbytes <= _SMALL_BYTES
            return Tensor.detach(copied).clone().requires_grad_(copied.requires_grad) if small else copied
    if isinstance(copied, np.ndarray):
        return copied.copy() if copied.nbytes <= _SMALL_BYTES else copied
    return type(copied)(copied) if type(copied) in (list, deque) and len(copied) > LONG else copied


def _restores(original: Any, copied: Any) -> Iterator[Restore]:
    if isinstance(copied, nn.Module):
        pass
    elif isinstance(copied, types.CellType):
        yield partial(setattr, copied, "cell_contents", copied.cell_contents)
    elif isinstance(copied, torch.Generator):
        yield partial(copied.set_state, copied.get_state())
    elif isinstance(copied, (np.random.Generator, np.random.BitGenerator)):
        bits = copied if isinstance(copied, np.random.BitGenerator) else copied.bit_generator
        yield partial(setattr, bits, "state", bits.state)
    elif isinstance(copied, np.random.RandomState):
        yield partial(copied.set_state, copied.get_state(legacy=False))
    elif isinstance(copied, random.Random):
        yield partial(copied.setstate, copied.getstate())
    elif isinstance(copied, np.ndarray):
        if copied.dtype == object:
            yield partial(np.copyto, copied, copied.copy())
        elif copied.nbytes <= _SMALL_BYTES:
            yield partial(np.copyto, copied, original)
    elif is_shared_value(copied):
        memory = copied.get_obj() if hasattr(copied, "get_obj") else copied
        yield partial(ctypes.memmove, ctypes.addressof(memory), bytes(memory), ctypes.sizeof(memory))
    elif isinstance(copied, (list, deque)) and len(copied) > LONG:
        yield partial(_refill_if_moved, copied, original)
    elif isinstance(copied, list):
        yield partial(list.__setitem__, copied, slice(None), list(copied))
    elif isinstance(copied, deque):
        yield partial(_refill, deque, deque.extend, copied, list(copied))
    elif isinstance(copied, (dict, set)) and len(copied) <= LONG:
        if isinstance(copied, defaultdict):
            yield partial(setattr, copied, "default_factory", copied.default_factory)
        # By the methods of the base class, because some dicts refuse updates.
        kind: Any = next(kind for kind in (OrderedDict, dict, set) if isinstance(copied, kind))
        items: Any = set.__iter__ if kind is set else kind.items
        content = list(items(copied))
        if kind is set and copied is not original:  # the order of a set depends on how it was filled
            _refill(set, set.update, copied, content)
        yield partial(_refill, kind, kind.update, copied, content)
    own: Any = type(copied)
    for name in _slots(own):
        if hasattr(copied, name):
            yield partial(object.__setattr__, copied, name, getattr(copied, name))


def _refill(kind: Any, fill: Any, container: Any, content: Any) -> None:
    kind.clear(container)
    fill(container, content)


def _refill_if_moved(copied: Any, original: Any) -> None:
    """Refill a long list or deque if its length or one of its ends changed; checking each item takes too long."""
    kind: Any = list if isinstance(copied, list) else deque
    item = kind.__getitem__  # returns the stored item, not a copy
    if len(copied) != len(original) or any(item(copied, end) is not item(original, end) for end in (0, -1)):
        _refill(kind, kind.extend, copied, original)


@lru_cache(maxsize=256)
def _slots(kind: type) -> tuple[str, ...]:
    found = (vars(base).get("__slots__", ()) for base in kind.__mro__)
    names = (name for slots in found for name in ((slots,) if isinstance(slots, str) else slots))
    return tuple(name for name in names if not name.startswith("__"))
