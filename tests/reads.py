"""The CPU as if it were a device without double precision, whose numbers have to be read one way.

Every float64 tensor is then on the host, and is made by `on_host`. Where a tensor that is not one becomes a number of
Python's, or goes through `on_host`, the device is read.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_probes.functional import wide

_WIDE = (torch.float64, torch.complex128)
_READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}
_READING_METHODS = {"cpu", "numpy", "tolist"}


class Seen:
    """What was seen.

    Attributes:
        reads: How often the device was read, by line of the package.
        wide: Where a tensor in double precision came from elsewhere than `on_host`, or met one of the device.
    """

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.wide: list[str] = []


@contextmanager
def device_without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Pretend while the block runs."""
    seen = Seen()
    with monkeypatch.context() as patch, _Dispatch(seen), _Methods(seen):
        patch.setattr(wide, "_WITHOUT_FLOAT64", {"cpu"})
        yield seen


class _Dispatch(TorchDispatchMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        from_host, to_host = any(map(_is_wide, given)), any(map(_is_wide, made))
        if to_host and _by_on_host():
            self.seen.reads[_line()] += any(not _is_wide(tensor) for tensor in given)
        elif to_host and (not from_host or any(map(_is_narrow, given))):
            self.seen.wide.append(f"{name} at {_line()}")
        elif name in _READING and not from_host:
            self.seen.reads[_line()] += 1
        return result


class _Methods(TorchFunctionMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READING_METHODS and not _is_wide(args[0]) and not _by_on_host():
            self.seen.reads[_line()] += 1
        return func(*args, **(kwargs or {}))


def _is_wide(tensor: Tensor) -> bool:
    return tensor.dtype in _WIDE


def _is_narrow(tensor: Tensor) -> bool:
    """Whether it is of the device, and more than a number, which goes with tensors of other devices."""
    return tensor.is_floating_point() and tensor.ndim > 0 and not _is_wide(tensor)


def _by_on_host() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is wide.on_host.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _line() -> str:
    """The line of the package that has called, other than of `on_host`."""
    for frame, line in traceback.walk_stack(None):
        _, package, file = frame.f_code.co_filename.rpartition("lightning_probes/")
        if package and file != "functional/wide.py":
            return f"{file}:{line}"
    return "elsewhere"
