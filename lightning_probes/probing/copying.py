"""Copies of objects that were never meant to be copied: deep where that works, shared where it does not.

`copy.deepcopy` gives up on the whole object at the first lock, open file or tensor inside a graph. Here each such part is
shared (or, when `strict`, refused) and everything around it is copied.
"""

from __future__ import annotations

import enum
import functools
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_ATOMIC = (
    type(None), type(...), type(NotImplemented), bool, int, float, complex, str, bytes, range, slice, enum.Enum, type,
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.GetSetDescriptorType, weakref.ref,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, np.generic, np.dtype,
)  # fmt: skip

# Hooks and parameters of a copy are for its user to exchange between passes; whoever does puts them back.
_EXCHANGEABLE = frozenset(name for name in nn.Module().__dict__ if "hooks" in name) | {"_parameters"}


class Copier:
    """A lenient `copy.deepcopy` that remembers what it made.

    Args:
        memo: What stands for an object already, by `id`.
        share: Objects for which this is true are not copied.
        strict: Raise for what can't be copied instead of sharing it.

    Attributes:
        tensors: Pairs (original, copy) of the tensors cloned.
        containers: The lists, dicts, sets and deques made.
        objects: The other mutable objects made.
        hidden_parameters: Copies of parameters that `memo` did not know, by where they were found.

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
        share: Callable[[Any], bool] = lambda _: False,
        strict: bool = False,
    ) -> None:
        self.memo = {} if memo is None else memo
        self.share = share
        self.strict = strict
        self.tensors: list[tuple[Tensor, Tensor]] = []
        self.containers: list[Any] = []
        self.objects: list[Any] = []
        self.hidden_parameters: dict[str, nn.Parameter] = {}
        self._alive: list[Any] = []  # ids stay unique only while their objects live

    def __call__(self, value: Any, path: str = "") -> Any:
        """Copy a value; `path` says where it hangs, for messages."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, _ATOMIC) or self.share(value):
            return value
        copied = self._copy(value, path)
        self.memo[id(value)] = copied
        self._alive.append(value)
        return copied

    def _copy(self, value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value, path)
        if isinstance(value, torch.Generator):
            generator = torch.Generator(device=value.device)
            generator.set_state(value.get_state())
            return generator
        if type(value) in (list, set, frozenset, tuple, deque, dict, OrderedDict, defaultdict):
            return self._copy_container(value, path)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self(value.__self__, path))
        if isinstance(value, functools.partial):
            return functools.partial(self(value.func), *self(value.args), **self(value.keywords))
        try:
            return self._copy_object(value, path)
        except Exception:
            if self.strict:
                raise
            return value

    def _copy_tensor(self, value: Tensor, path: str) -> Tensor:
        copied = value.detach().clone()
        if isinstance(value, nn.Parameter):
            parameter = nn.Parameter(copied, requires_grad=value.requires_grad)
            self.hidden_parameters[path] = parameter
            copied = parameter
        elif value.is_leaf:
            copied.requires_grad_(value.requires_grad)
        self.tensors.append((value, copied))
        return copied

    def _copy_container(self, value: Any, path: str) -> Any:
        if isinstance(value, tuple):
            return tuple(self(item, f"{path}[{i}]") for i, item in enumerate(value))
        if isinstance(value, frozenset):
            return frozenset(self(item, path) for item in value)
        copied: Any
        if isinstance(value, defaultdict):
            copied = defaultdict(value.default_factory)
        elif isinstance(value, deque):
            copied = deque(maxlen=value.maxlen)
        else:
            copied = type(value)()
        self.memo[id(value)] = copied
        if isinstance(value, dict):
            copied.update({self(key, path): self(item, f"{path}[{key!r}]") for key, item in value.items()})
        elif isinstance(value, set):
            copied.update(self(item, path) for item in value)
        else:
            copied.extend(self(item, f"{path}[{i}]") for i, item in enumerate(value))
        self.containers.append(copied)
        return copied

    def _copy_object(self, value: Any, path: str) -> Any:
        if isinstance(value, np.ndarray) and value.dtype != object:
            return value.copy()
        if isinstance(value, nn.Module) and is_parametrized(value):
            # A parametrized module refuses to be pickled, though its attributes are like any other's.
            reduced: Any = (type(value).__new__, (type(value),), value.__dict__)
        elif hasattr(value, "__deepcopy__"):
            return value.__deepcopy__(self.memo)
        else:
            reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):  # a global: the object is its own copy
            return value
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        copied = make(*self(args, path))
        self.memo[id(value)] = copied
        self._alive.extend(reduced)
        self.objects.append(copied)
        if state is not None:
            self._set_state(copied, state, path)
        for item in items or ():
            copied.append(self(item, path))
        for key, item in pairs or ():
            copied[self(key, path)] = self(item, path)
        return copied

    def _set_state(self, copied: Any, state: Any, path: str) -> None:
        if isinstance(copied, nn.Module) and isinstance(state, dict):
            remembered = len(self.containers)
            hooks = {name: self(item, path) for name, item in state.items() if name in _EXCHANGEABLE}
            del self.containers[remembered:]
            state = {
                name: hooks[name] if name in hooks else self(item, _attribute(path, name))
                for name, item in state.items()
            }
        else:
            state = self(state, path)
        if hasattr(copied, "__setstate__"):
            copied.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        copied.__dict__.update(attributes or {})
        for name, item in (slots or {}).items():
            setattr(copied, name, item)


def _attribute(path: str, name: str) -> str:
    # `_modules` and its like are how a module stores attributes, not something its author wrote.
    if name in ("_modules", "_parameters", "_buffers"):
        return path
    return f"{path}.{name}" if path else name
