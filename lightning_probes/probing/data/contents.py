"""The tensors and arrays in a batch, which may be any kind of object."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_probes.probing.isolation.copying import COPY, Copier, bytes_of


def arrays_in(batch: Any) -> list[Any]:
    """The tensors and arrays in a batch, each once, in the order of its fields; they are not copied.

    Example:
        >>> arrays_in({"x": torch.zeros(1), "names": ["a"], "more": (np.ones(1),)})
        [tensor([0.]), array([1.])]
    """
    found: list[Any] = []

    def look(value: Any, copier: Copier) -> Any:
        if not isinstance(value, (Tensor, np.ndarray)):
            return COPY
        found.append(value)
        return value

    Copier(stand_in=look)(batch)  # walks through any object
    return found


def length(batch: Any) -> int:
    """Number of samples in a whole batch: the length of its first array, 1 if it has none."""
    return next((array.shape[0] for array in arrays_in(batch) if array.ndim), 1)


def bytes_in(batch: Any) -> int:
    """Bytes of the tensors and arrays in a batch."""
    return sum(bytes_of(array) if isinstance(array, Tensor) else array.nbytes for array in arrays_in(batch))


def checksum(batch: Any) -> int:
    """A checksum of all bits of the tensors and arrays in a batch. Sparse and nested tensors are only counted.

    Example:
        >>> checksum([torch.zeros(2)]) == checksum({"x": torch.zeros(2)}), checksum(torch.tensor(0.0)) == checksum(
        ...     torch.tensor(-0.0)
        ... )
        (True, False)
    """
    total = 0
    for array in arrays_in(batch):
        if isinstance(array, Tensor):
            array = _as_array(array)
        is_plain = array is not None and not array.dtype.hasobject
        total = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data if is_plain else b"?", total)
    return total


def _as_array(tensor: Tensor) -> Any:
    """The bytes of a tensor, in shared memory if possible; None if the tensor has no simple layout."""
    with torch._C.DisableTorchFunctionSubclass():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
            return None
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
        return flat.view(torch.uint8).numpy()
