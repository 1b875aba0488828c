"""Copies of functions, methods and partials, with their own closures, defaults and bound objects."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from lightning_probes.probing.isolation.lazy import is_plain

CALLABLES = (
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools._lru_cache_wrapper, functools.partial,
)  # fmt: skip


def copied_callable(
    value: Any, copy: Callable[[Any, str], Any], path: str, memo: dict[int, Any], made: list[Any], alive: list[Any]
) -> Any:
    """The copy of one of `CALLABLES`; the function itself if it refers to nothing mutable.

    Args:
        value: The function.
        copy: The copier's function, used for objects that `value` refers to.
        path: Path of attributes to the function, for messages.
        memo: The copier's memo.
        made: The copier's list of pairs (original, copy).
        alive: The copier's list of objects to keep alive.
    """
    if isinstance(value, types.FunctionType):
        return _copied_function(value, copy, path, memo, made, alive)
    if isinstance(value, types.MethodType):
        return types.MethodType(copy(value.__func__, path), copy(value.__self__, path))
    if isinstance(value, types.BuiltinFunctionType):  # `len`, or the `append` of some list
        owner = copy(value.__self__, path)
        return value if owner is value.__self__ else getattr(owner, value.__name__)
    if isinstance(value, functools.partial):
        keywords = {name: copy(item, path) for name, item in value.keywords.items()}
        return functools.partial(copy(value.func, path), *(copy(item, path) for item in value.args), **keywords)
    cached = copy(value.__wrapped__, path)  # the cached results belong to the original
    return value if cached is value.__wrapped__ else cached


def _copied_function(
    value: types.FunctionType, copy: Callable[[Any, str], Any], path: str, memo: dict[int, Any], made: list[Any],
    alive: list[Any],
) -> Any:  # fmt: skip
    compiled = getattr(value, "_torchdynamo_orig_callable", None)
    if compiled is not None:  # compiled code is bound to the original
        return copy(compiled, path)
    defaults, keyword_defaults = value.__defaults__ or (), value.__kwdefaults__ or {}
    if not value.__closure__ and is_plain(defaults) and is_plain(keyword_defaults):
        return value
    cells = tuple(memo.setdefault(id(cell), types.CellType()) for cell in value.__closure__ or ())
    copied = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
    memo[id(value)] = copied  # a function may refer to itself
    copied.__defaults__, copied.__kwdefaults__ = copy(value.__defaults__, path), copy(value.__kwdefaults__, path)
    copied.__dict__.update(value.__dict__)
    copied.__doc__, copied.__qualname__, copied.__module__ = value.__doc__, value.__qualname__, value.__module__
    for cell, copied_cell in zip(value.__closure__ or (), cells, strict=True):
        if _is_filled(cell) and not _is_filled(copied_cell):
            alive.append(cell)
            copied_cell.cell_contents = copy(cell.cell_contents, path)
            made.append((cell, copied_cell))
    return copied


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
