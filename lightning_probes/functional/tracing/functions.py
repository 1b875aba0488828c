"""Watching the functions that a pass calls, and the layers that call them.

A `TorchFunctionMode` sees each function of torch that Python code calls with a tensor, also in-place ones and
operators. It sees nothing inside a compiled or scripted region or a custom autograd function. Unlike a dispatch mode,
it does not import the compiler.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_probes.functional.fast_path import without_fast_path

# Attributes that are tensors. Others, such as a shape, are read often and are no part of a computation.
_TENSORS = frozenset({"T", "mT", "H", "mH", "data", "real"})


@dataclass(frozen=True, eq=False, slots=True)
class FunctionCall:
    """One call of a function of torch.

    Attributes:
        function: The function.
        name: Its name; for an attribute that is a tensor, the name of the attribute.
        args: Positional arguments.
        kwargs: Keyword arguments.
        layer: The call of the innermost submodule around it: `name`, for its second call `name#2`, and so on. Empty
            outside any submodule.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    layer: str

    def run(self) -> Any:
        """Call the function with its arguments. Functions called inside are not watched."""
        return self.function(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return tensors((self.args, self.kwargs))


OnCall: TypeAlias = Callable[[FunctionCall], Any]
OnEnter: TypeAlias = Callable[[str, nn.Module, Any], None]
OnReturn: TypeAlias = Callable[[str, Any], None]


@contextmanager
def watch_functions(
    module: nn.Module, on_call: OnCall, on_enter: OnEnter | None = None, on_return: OnReturn | None = None,
    only: frozenset[str] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Let `on_call(call)` stand for each function that is called with a tensor inside the block.

    Args:
        module: The module of a twin. It has hooks inside the block; nothing else changes.
        on_call: Returns what the function is to return, usually `call.run()`. It may call another function, or the
            same one with other arguments.
        on_enter: Called before each call of a submodule as `on_enter(layer, submodule, inputs)`.
        on_return: Called after it as `on_return(layer, output)`; the output is None if the call raised an error.
        only: Names of the functions to watch; by default all.

    Example:
        >>> import torch
        >>> def on_call(call):
        ...     print(f"{call.name} in {call.layer!r}")
        ...     return call.run()
        >>> net, inputs = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.zeros(1, 2)
        >>> with watch_functions(net, on_call):
        ...     output = net(inputs) + 1
        linear in '0'
        relu in '1'
        add in ''
    """
    layers = [""]
    calls: Counter[str] = Counter()
    names = [name for name, _ in module.named_modules()]
    sign = next(sign for number in itertools.count(1) if not any((sign := "#" * number) in name for name in names))

    def enter(name: str, child: nn.Module, args: Any, kwargs: Any) -> None:
        calls[name] += 1
        layers.append(name if calls[name] == 1 else f"{name}{sign}{calls[name]}")
        if on_enter is not None:
            on_enter(layers[-1], child, (args, kwargs))

    def leave(_child: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        layer = layers.pop()
        if on_return is not None:
            on_return(layer, output)

    handles: list[Any] = []
    for name, child in module.named_modules():
        handles.append(child.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
        handles.append(child.register_forward_hook(leave, with_kwargs=True, always_call=True))
    try:
        with without_fast_path(), _Watching(on_call, layers, only):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Watching(TorchFunctionMode):
    def __init__(self, on_call: OnCall, layers: list[str], only: frozenset[str] | None) -> None:
        super().__init__()
        self._on_call, self._layers, self._only = on_call, layers, only

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name not in _TENSORS:
                return func(*args, **(kwargs or {}))
        if self._only is not None and name not in self._only:
            return func(*args, **(kwargs or {}))
        return self._on_call(FunctionCall(func, name, args, kwargs or {}, self._layers[-1]))


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, depth first."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (tuple, list)):
        parts: Any = tree
    elif isinstance(tree, Mapping):
        parts = tree.values()
    else:
        return []
    return [tensor for part in parts for tensor in tensors(part)]
