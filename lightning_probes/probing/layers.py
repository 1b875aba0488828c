"""Watching what the layers of a twin return, call by call."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

T = TypeVar("T")


@contextmanager
def watch_layers(module: nn.Module, on_output: Callable[[str, Any], None]) -> Iterator[None]:
    """Tell `on_output(name, output)` of every submodule's call, in the order in which they return.

    The second call of a submodule is named `name#2`, and so on. The output is handed over at once, since a layer behind
    it may overwrite it.

    Args:
        module: A twin's module; not the user's own, which must not be hooked.
        on_output: Receives the name and what the submodule returned.

    Example:
        >>> import torch
        >>> relu = nn.ReLU()
        >>> with watch_layers(nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu), lambda name, _: print(name)):
        ...     pass
    """
    calls: Counter[str] = Counter()

    def hook(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        calls[name] += 1
        try:
            with torch.no_grad():  # what is made of outputs is no part of the pass
                on_output(name if calls[name] == 1 else f"{name}#{calls[name]}", output)
        except (TypeError, ValueError) as error:  # of ours, in the midst of the user's code
            raise MisconfigurationException(str(error)) from error

    handles = [child.register_forward_hook(partial(hook, name)) for name, child in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def select(patterns: Iterable[str], names: Sequence[str], what: str = "layers") -> list[str]:
    """The names that match any of some names and globs, in their own order.

    Args:
        patterns: Names, or globs such as `"encoder.*.attention"`; or one of them.
        names: What there is to choose from.
        what: The argument to name in an error.

    Raises:
        MisconfigurationException: If a pattern matches nothing; lists close names.

    Example:
        >>> select(["fc*"], ["conv", "fc1", "fc2"])
        ['fc1', 'fc2']
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or list(names)[:5]
            raise MisconfigurationException(f"{what}: {pattern!r} matches nothing; close names are {', '.join(close)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def by_layer(params: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """What belongs to parameters, parted by the layer that owns them, whose name is as in keys.

    Example:
        >>> by_layer({"scale": 1, "net.0.weight": 2, "net.0.bias": 3})
        {'root': {'scale': 1}, 'net/0': {'net.0.weight': 2, 'net.0.bias': 3}}
    """
    layers: dict[str, dict[str, T]] = {}
    for name, value in params.items():
        layers.setdefault((name.rpartition(".")[0] or "root").replace(".", "/"), {})[name] = value
    return layers
