"""Short hashes of nested values, so that the states of two runs can be compared as text."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from multiprocessing.sharedctypes import SynchronizedBase
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest(value: Any) -> str:
    """A short hash of the content of a nested value."""
    return hashlib.sha256("\n".join(f"{path}={leaf}" for path, leaf in flatten(value)).encode()).hexdigest()[:12]


def flatten(value: Any, path: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, str]]:
    """The leaves of a nested value as (path, text). Objects are followed through their attributes, without cycles."""
    if isinstance(value, (Tensor, np.ndarray)):
        yield path, _array(value)
    elif isinstance(value, torch.Generator):
        yield path, f"generator {_array(value.get_state())}"
    elif isinstance(value, (random.Random, np.random.Generator, np.random.RandomState)):
        yield path, f"generator {digest(_state(value))}"
    elif isinstance(value, SynchronizedBase):  # its memory address differs between runs
        yield path, f"shared {bytes(value.get_obj())!r}"
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        yield path, repr(value)
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        yield path, f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, MethodType):
        yield path, f"method {value.__qualname__} of {type(value.__self__).__name__}"
    elif id(value) in seen or isinstance(value, nn.Module) or _is_framework(value):
        yield path, type(value).__name__
    else:
        seen = seen | {id(value)}
        if isinstance(value, Mapping):
            items = [(str(key), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            items = [(str(index), item) for index, item in enumerate(value)]
        elif isinstance(value, (set, frozenset)):
            items = [(str(index), item) for index, item in enumerate(sorted(value, key=repr))]
        else:
            items = list(getattr(value, "__dict__", {}).items())
        yield path, f"{type(value).__name__} of {len(items)}"
        for key, item in items:
            yield from flatten(item, f"{path}.{key}" if path else key, seen)


def _is_framework(value: Any) -> bool:
    """Whether this is a Trainer of either namespace, or a part of the compiler, whose state belongs to the process."""
    bases = type(value).__mro__
    return any(base.__name__ == "Trainer" or base.__module__.startswith("torch._dynamo") for base in bases)


def _state(generator: random.Random | np.random.Generator | np.random.RandomState) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _array(value: Tensor | np.ndarray[Any, Any]) -> str:
    content = hashlib.sha256(_bytes(value)).hexdigest()[:12]
    nested = isinstance(value, Tensor) and value.is_nested
    return f"{value.dtype}{'' if nested else list(value.shape)} {content}"


def _bytes(value: Tensor | np.ndarray[Any, Any]) -> bytes:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).tobytes()
    value = value.detach()
    if value.is_nested:
        return b"".join(f"{list(each.shape)}".encode() + _bytes(each) for each in value.unbind())
    dense = value if value.layout is torch.strided else value.to_dense()
    return dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
