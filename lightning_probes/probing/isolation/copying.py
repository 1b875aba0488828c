"""Copies of arbitrary objects: deep if possible, with the parts shared that can't be copied.

`copy.deepcopy` fails for the whole object at the first lock, open file or tensor inside a graph. Here each such part is
shared (or replaced, or refused), and everything around it is copied, including bound methods and closures. A chain of
objects that is too long to follow is refused.
"""

from __future__ import annotations

import contextlib
import copyreg
import enum
import functools
import sys
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_probes.probing.isolation.belongings import (
    FILES,
    is_shared_value,
    private_event,
    private_value,
    reopened,
    without_finalizer,
)
from lightning_probes.probing.isolation.callables import CALLABLES, copied_callable
from lightning_probes.probing.isolation.depth import CopyError, deeper, is_nesting, too_deep
from lightning_probes.probing.isolation.lazy import PLAIN, is_constant, is_plain, lazy

# A longer container holds data, not state: it is copied, but its items are shared or copied later.
LONG = 10_000

# In data, the many items of a longer container are copied, but not recorded in `made`.
_MANY = 1_000

# `stand_in` returns these for an object to copy as usual, and for one that holds data.
COPY, DATA = object(), object()

_ATOMIC = (
    type(...), type(NotImplemented), range, slice, enum.Enum, type, types.ModuleType, types.GetSetDescriptorType,
    weakref.ref, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, np.generic, np.dtype,
)  # fmt: skip
_CONTAINERS = frozenset({list, set, frozenset, tuple, deque, dict, OrderedDict, defaultdict})
# The most frequent types; they skip `stand_in` and the checks for rarer types.
_COMMON = frozenset({list, tuple, dict, OrderedDict, set})

# Code that uses a copy may replace its hooks and parameters between passes, and restores them itself.
_EXCHANGEABLE = frozenset(name for name in nn.Module().__dict__ if "hooks" in name) | {"_parameters"}
# Where a module stores submodules, parameters and buffers.
_REGISTRIES = frozenset({"_modules", "_parameters", "_buffers"})


def share(value: Any, path: str, error: Exception) -> Any:
    """For `Copier(otherwise=...)`: share objects that can't be copied."""
    return value


def refuse(value: Any, path: str, error: Exception) -> Any:
    """For `Copier(otherwise=...)`: raise an error for objects that can't be copied."""
    where = f" at {path!r}" if path else ""
    raise CopyError(f"{type(value).__name__}{where} can't be copied ({type(error).__name__}: {error})") from error


class Copier:
    """A lenient `copy.deepcopy` that records its copies.

    Args:
        memo: Existing replacements of objects, by `id`.
        stand_in: Maps an object (and this copier) to its replacement: the object itself to share it, `COPY` or `DATA`
            to copy it. Not called for built-in containers, which are always copied.
        otherwise: Maps an object that can't be copied, its path and the error to its replacement.
        largest: Size in bytes of the largest tensor in data that is copied. Other tensors are always copied.
        budget: Total size in bytes of such tensors that are copied.
        later: Called with an item of a long container and its path when the item is first read; calls this copier.
            None to share such items.

    Attributes:
        made: Pairs (original, copy) of all mutable objects.
        hidden_parameters: Copies of parameters that are not in `memo`, by path.
        shared_tensors: Path, alias on the same storage, and version of each tensor that is too large to copy.

    Raises:
        CopyError: If an object can't be copied and must not be shared.

    Example:
        >>> original = {"weights": [torch.zeros(2)], "lock": __import__("threading").Lock()}
        >>> duplicate = Copier()(original)
        >>> duplicate["weights"][0] is original["weights"][0], duplicate["lock"] is original["lock"]
        (False, True)
    """

    def __init__(
        self,
        memo: dict[int, Any] | None = None,
        *,
        stand_in: Callable[[Any, Copier], Any] = lambda value, copier: COPY,
        otherwise: Callable[[Any, str, Exception], Any] = share,
        largest: int = sys.maxsize,
        budget: int = sys.maxsize,
        later: Callable[[Any, str], Any] | None = None,
    ) -> None:
        self.memo = {} if memo is None else memo
        self.stand_in = stand_in
        self.otherwise = otherwise
        self.later = later
        self.made: list[tuple[Any, Any]] = []
        self.hidden_parameters: dict[str, nn.Parameter] = {}
        self.shared_tensors: list[tuple[str, Tensor, int]] = []
        self.largest = largest
        self._budget = budget
        self._in_data = False
        self._alive: list[Any] = []  # ids stay unique only while their objects live

    def __call__(self, value: Any, path: str = "") -> Any:
        """Copy a value; `path` is its path of attributes, for messages."""
        with deeper():
            try:
                return self.of(value, path)
            except RecursionError as error:
                raise too_deep(value, path) from error

    def of(self, value: Any, path: str) -> Any:
        """The copy of a value inside another value."""
        if type(value) in PLAIN:
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        if type(value) in _COMMON:
            copied: Any = self._copy(value, path)
        elif type(value) in weakref.ProxyTypes:  # first, because its `__class__` is that of its referent
            copied = weakref.proxy(self.of(value.__repr__.__self__, path))
        elif type(value) is weakref.ref:
            copied = value if value() is None else weakref.ref(self.of(value(), path))
        elif not isinstance(value, (nn.Module, Tensor)) and isinstance(value, _ATOMIC):
            return value
        else:
            copied = self.stand_in(value, self)
            if copied is COPY:
                copied = self._copy(value, path)
            elif copied is DATA:
                copied = self._copy_data(value, path)
        self.memo[id(value)] = copied
        self._alive.append(value)
        return copied

    def _copy(self, value: Any, path: str) -> Any:
        if type(value) in _CONTAINERS:
            return self._copy_container(value, path)
        if isinstance(value, CALLABLES):
            return copied_callable(value, self.of, path, self.memo, self.made, self._alive)
        try:
            return self._copy_tensor(value, path) if isinstance(value, Tensor) else self._copy_object(value, path)
        except CopyError:
            raise
        except Exception as error:
            if isinstance(error, RecursionError) and is_nesting(error, Copier.of.__code__):
                raise too_deep(value, path) from error
            return self.otherwise(value, path, error)

    def _copy_data(self, value: Any, path: str) -> Any:
        outside, self._in_data = self._in_data, True
        try:
            return self._copy(value, path)
        finally:
            self._in_data = outside

    def fits(self, size: int) -> bool:
        """Whether the budget allows copying this number of bytes; if so, they are subtracted from it."""
        if size > min(self.largest, self._budget):
            return False
        self._budget -= size
        return True

    def _copy_tensor(self, value: Tensor, path: str) -> Tensor:
        shared = self._in_data and not self.fits(bytes_of(value)) and not value.is_inference()
        with torch._C.DisableTorchFunctionSubclass():  # methods of a subclass may need missing attributes
            copied = Tensor.detach(value) if shared else Tensor.clone(Tensor.detach(value))
            if isinstance(value, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=value.requires_grad)
                self.hidden_parameters[path] = copied
            elif type(copied) is not type(value):
                copied = Tensor._make_subclass(type(value), copied)
            if not isinstance(value, nn.Parameter) and value.requires_grad and value.is_leaf:
                Tensor.requires_grad_(copied)
        self.memo[id(value)] = copied
        if own := vars(value):
            own = {name: item for name, item in own.items() if name not in vars(copied)}
            vars(copied).update(self._copied_state(own, path))
        if shared:
            self.shared_tensors.append((path, copied, copied._version))
        else:
            self.made.append((value, copied))
        return copied

    def _copy_container(self, value: Any, path: str) -> Any:
        shallow, before = is_plain(value), len(self.made)
        if not shallow and len(value) > LONG:
            later = self.later
            shallow = later is None or is_constant(value)
            if later is not None and not shallow:
                gives_copies = lazy(value, lambda item: later(item, f"{path}[…]"))
                if gives_copies is not None:
                    self.made.append((value, gives_copies))
                    return gives_copies
        if isinstance(value, (tuple, frozenset)):
            items = value if shallow else [self.of(item, f"{path}[{i}]") for i, item in enumerate(value)]
            same = all(item is copied for item, copied in zip(value, items, strict=True))
            return value if same else type(value)(items)
        copied = self._new_container(value, (lambda key: f"{path}[{key!r}]") if not shallow else None)
        if self._in_data and len(value) > _MANY:
            del self.made[before:]
        self.made.append((value, copied))
        return copied

    def _new_container(self, value: Any, place: Callable[[Any], str] | None) -> Any:
        """A copy of a mutable container; `place` gives the path of an item, None shares the items."""
        copied: Any
        if isinstance(value, defaultdict):
            copied = defaultdict(value.default_factory)
        elif isinstance(value, deque):
            copied = deque(maxlen=value.maxlen)
        else:
            copied = type(value)()
        self.memo[id(value)] = copied
        if not value:
            return copied
        if place is None:
            copied.extend(value) if isinstance(value, (list, deque)) else copied.update(value)
        elif isinstance(value, dict):
            items = []
            for key, item in list(value.items()):  # a list, because copying an item may add to the dict
                where = "" if id(item) in self.memo and type(key) in PLAIN else place(key)
                items.append((self.of(key, where), self.of(item, where)))
            copied.update(items)
        elif isinstance(value, set):
            copied.update([self.of(item, place(item)) for item in value])
        else:
            copied.extend([self.of(item, place(i)) for i, item in enumerate(value)])
        return copied

    def _copy_object(self, value: Any, path: str) -> Any:
        if isinstance(value, nn.Module):
            return self._copy_module(value, path)
        if isinstance(value, torch.Generator):
            copied: Any = torch.Generator(device=value.device)
            copied.set_state(value.get_state())
        elif isinstance(value, np.ndarray):
            if not value.flags.writeable and value.dtype != object:
                return value
            copied = self.memo[id(value)] = value.copy()
            if value.dtype == object and (value.size <= LONG or self.later is not None):
                for index, item in enumerate(value.flat):
                    copied.flat[index] = self.of(item, f"{path}[…]")
        elif isinstance(value, FILES):
            return reopened(value)
        elif hasattr(type(value), "__deepcopy__"):
            copied = value.__deepcopy__(self.memo)
        elif isinstance(value, threading.local):
            copied = self.memo[id(value)] = type(value).__new__(type(value))
            vars(copied).update(self._copied_state(vars(value), path))
        elif is_shared_value(value):
            copied = private_value(value)
        elif isinstance(value, Event):
            copied = private_event(value)
        else:
            return self._rebuild(value, path)
        self.made.append((value, copied))
        return copied

    def _copy_module(self, module: Any, path: str) -> Any:
        # A parametrized module refuses to be pickled, although its attributes can be copied like others.
        refuses = "parametrizations" in vars(module).get("_modules", ()) and is_parametrized(module)
        state: Any = dict(vars(module)) if refuses else module.__getstate__()
        self._alive.append(state)
        copied: Any = object.__new__(without_finalizer(type(module)))
        self.memo[id(module)] = copied
        self.made.append((module, copied))
        copied.__setstate__(self._copy_attributes(state, path) if isinstance(state, dict) else self.of(state, path))
        return copied

    def _copy_attributes(self, state: dict[str, Any], path: str) -> dict[str, Any]:
        memo = self.memo
        attributes: dict[str, Any] = {}
        for name, item in state.items():
            kind = type(item)
            if kind in PLAIN or (kind is tuple and is_plain(item)):
                attributes[name] = item
                continue
            if id(item) in memo:  # copied before, such as hooks through one of their handles
                attributes[name] = memo[id(item)]
                if name in _EXCHANGEABLE:
                    self.made[:] = [pair for pair in self.made if pair[1] is not attributes[name]]
            elif name in _EXCHANGEABLE and not item:  # the usual case
                attributes[name] = memo[id(item)] = kind()
                continue
            elif kind in _COMMON and not item:
                attributes[name] = memo[id(item)] = kind()
                if name not in _REGISTRIES:
                    self.made.append((item, attributes[name]))
            elif name in _REGISTRIES:
                attributes[name] = self._new_container(item, functools.partial(_attribute, path))
            elif name in _EXCHANGEABLE:
                attributes[name] = self._new_container(item, functools.partial(_attribute, _attribute(path, name)))
            else:
                attributes[name] = self.of(item, _attribute(path, name))
            if name in ("_modules", "_buffers"):
                self.made.append((item, attributes[name]))
        return attributes

    def _rebuild(self, value: Any, path: str) -> Any:
        """Copy an object through `__reduce_ex__`, like `copy.copy`."""
        reduced = _reduced(value)
        if isinstance(reduced, str):  # a global: the object is its own copy
            return value
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        self._alive.extend(reduced)
        copied = self._bare(value, make, args, path)
        if copied is value:
            return value
        self.memo[id(value)] = copied
        self.made.append((value, copied))
        if state is not None:
            self._set_state(copied, state, path)
        for item in items or ():
            copied.append(self.of(item, path))
        for key, item in pairs or ():
            copied[self.of(key, path)] = self.of(item, f"{path}[{key!r}]")
        return copied

    def _bare(self, value: Any, make: Callable[..., Any], args: tuple[Any, ...], path: str) -> Any:
        """A new object without its state; the original if the class allows only one instance."""
        kind, usual = type(value), make in (copyreg.__newobj__, copyreg.__newobj_ex__)  # type: ignore[attr-defined]
        quiet = without_finalizer(kind)
        if quiet is not kind and not (usual and not hasattr(kind, "__setstate__")):
            raise TypeError("its class has __del__, and rebuilding it may acquire resources that are never freed")
        if not usual:
            return make(*self.of(args, path))
        if isinstance(kind.__new__, types.FunctionType):
            # Not by `kind.__new__`, which may need other arguments, return an existing object, or register the new one.
            with contextlib.suppress(TypeError):
                return object.__new__(quiet)
        return make(quiet, *self.of(args[1:], path))

    def _copied_state(self, state: dict[str, Any], path: str) -> dict[str, Any]:
        return {name: self.of(item, _attribute(path, name)) for name, item in state.items()}

    def _set_state(self, copied: Any, state: Any, path: str) -> None:
        state = self._copied_state(state, path) if type(state) is dict else self.of(state, path)
        if hasattr(type(copied), "__setstate__"):  # `hasattr(copied, ...)` would call its `__getattr__`
            copied.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        vars(copied).update(attributes or {}) if attributes else None
        for name, item in (slots or {}).items():
            setattr(copied, name, item)


def _reduced(value: Any) -> Any:
    kind = type(value)
    # Before Python 3.11 an object without `__getstate__` is asked for it, and its `__getattr__` may make one up.
    as_usual = not any({"__reduce_ex__", "__reduce__"} & vars(base).keys() for base in kind.__mro__[:-1])
    made_up = as_usual and hasattr(kind, "__getattr__") and not hasattr(kind, "__getstate__")
    if made_up and isinstance(value.__dict__, dict) and not isinstance(value, (list, dict)):
        return copyreg.__newobj__, (kind,), vars(value)  # type: ignore[attr-defined]
    return value.__reduce_ex__(4)


def bytes_of(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; 0 for sparse and nested tensors."""
    return tensor.numel() * tensor.element_size() if tensor.layout == torch.strided and not tensor.is_nested else 0


def _attribute(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
