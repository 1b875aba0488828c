"""Running a module in float64 although it was written for float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from lightning_probes.probing.isolation.copying import Copier

_WIDER = {
    torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}  # fmt: skip
_CASTS = {Tensor.float: Tensor.double, Tensor.half: Tensor.double, Tensor.bfloat16: Tensor.double}


def widened(batch: Any) -> Any:
    """A copy of any batch with its floating-point tensors in float64 and its complex ones in complex128."""
    copier = Copier()  # finds the tensors in any object
    copied = copier(batch)
    for _, part in copier.made:
        if isinstance(part, Tensor) and part.dtype in _WIDER:
            part.data = _widened(part.data)
    return copied


def widened_state(module: nn.Module) -> dict[str, Tensor]:
    """Detached copies of a module's parameters and buffers by name, in the same dtypes as `widened`."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: _widened(tensor.detach()) for name, tensor in named}


@contextmanager
def in_double() -> Iterator[None]:
    """Inside the block, new tensors are float64, and casts to lower precision become casts to float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():
            yield
    finally:
        torch.set_default_dtype(before)


class _Widening(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        args, kwargs = tree_map_only(torch.dtype, _wider, (args, dict(kwargs or {})))
        return _CASTS.get(func, func)(*args, **kwargs)


class NarrowTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Detects whether anything inside the block is computed in less than double precision.

    Attributes:
        seen: Whether an operation used a tensor of lower precision.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= any(
            isinstance(leaf, Tensor) and leaf.dtype in _WIDER and leaf.numel() > 1
            for leaf in tree_iter((args, kwargs, result))
        )
        return result


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(_wider(tensor.dtype))


def _wider(dtype: torch.dtype) -> torch.dtype:
    return _WIDER.get(dtype, dtype)
