"""Watching the outputs of a twin's layers, and choosing layers by name."""

from __future__ import annotations

import difflib
import itertools
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
    """Call `on_output(name, output)` after each call of a submodule, in the order in which they return.

    The second call of a submodule has the name `name#2`, and so on. (If a submodule's name contains `#`, more of these
    signs are used.) `on_output` is called immediately, because a later layer may overwrite the output in place.

    Args:
        module: The module of a twin. Do not set hooks on the user's own module.
        on_output: Called with the name and the output of the submodule.

    Example:
        >>> import torch
        >>> relu = nn.ReLU()
        >>> with watch_layers(nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu), lambda name, _: print(name)):
        ...     pass
    """
    calls: Counter[str] = Counter()
    names = [name for name, _ in module.named_modules()]
    sign = next(sign for number in itertools.count(1) if not any((sign := "#" * number) in name for name in names))

    def hook(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        calls[name] += 1
        try:
            with torch.no_grad():  # computations on outputs are not part of the pass
                on_output(name if calls[name] == 1 else f"{name}{sign}{calls[name]}", output)
        except (TypeError, ValueError) as error:  # an error of a probe, raised inside the user's code
            raise MisconfigurationException(str(error)) from error

    handles = [child.register_forward_hook(partial(hook, name)) for name, child in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def select_layers(patterns: Iterable[str], names: Sequence[str], what: str = "layers") -> list[str]:
    """The names that match at least one of the patterns, in the order of `names`.

    Args:
        patterns: Names, or globs such as `"encoder.*.attention"`; or a single one. A pattern that is itself a name
            matches only that name.
        names: The names to choose from.
        what: The name of the argument, for the error message.

    Raises:
        MisconfigurationException: If a pattern matches nothing; the message lists similar names.

    Example:
        >>> select_layers(["fc*"], ["conv", "fc1", "fc2"])
        ['fc1', 'fc2']
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    exact = {pattern for pattern in patterns if pattern in names}
    globs = [pattern for pattern in patterns if pattern not in exact]
    for pattern in globs:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or list(names)[:5]
            raise MisconfigurationException(f"{what}: {pattern!r} matches nothing; close names are {', '.join(close)}")
    return [name for name in names if name in exact or any(fnmatchcase(name, pattern) for pattern in globs)]


def by_layer(params: Mapping[str, T], errors: bool = False) -> dict[str, dict[str, T]]:
    """Group values of parameters by the layer that owns the parameters. Layers have keys as in `layer_keys`.

    Example:
        >>> by_layer({"scale": 1, "net.0.weight": 2, "net.0.bias": 3})
        {'root': {'scale': 1}, 'net/0': {'net.0.weight': 2, 'net.0.bias': 3}}
    """
    layers: dict[str, dict[str, T]] = {}
    for name, value in params.items():
        layers.setdefault(name.rpartition(".")[0], {})[name] = value
    keys = layer_keys(layers, errors)
    return {keys[layer]: own for layer, own in layers.items()}


def layer_keys(names: Iterable[str], errors: bool = False) -> dict[str, str]:
    """A distinct key for each layer: its name, with slashes instead of dots.

    Args:
        names: Names of layers.
        errors: Whether results under these keys have standard errors, which are logged under `<key>_se`.

    Example:
        >>> layer_keys(["", "net.0", "a/b", "a.b"])
        {'net.0': 'net/0', 'a.b': 'a/b', '': 'root', 'a/b': 'a/b-2'}
    """
    keys: dict[str, str] = {}
    taken: set[str] = set()
    # Usual names come first, so that they get the plain key in any case.
    for name in sorted(dict.fromkeys(names), key=lambda name: (not name or "/" in name, name.endswith("_se"))):
        plain = (name or "root").replace(".", "/")
        key = next(key for number in itertools.count(1) if (key := _numbered(plain, number)) not in taken)
        keys[name] = key
        taken |= {key, f"{key}_se"} if errors else {key}
    return keys


def _numbered(key: str, number: int) -> str:
    return key if number == 1 else f"{key}-{number}"
