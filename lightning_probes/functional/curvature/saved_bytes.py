"""How much memory a graph holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class ModifiedError(RuntimeError):
    """A tensor that a kept graph needs was written to."""


@contextmanager
def counting_saved_bytes() -> Iterator[dict[int, int]]:
    """Bytes by storage of what autograd saves for a backward pass while the block runs.

    Example:
        >>> import torch
        >>> with counting_saved_bytes() as saved:
        ...     kept = torch.zeros(100, requires_grad=True).exp()
        >>> sum(saved.values())
        400
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach(), tensor._version  # an output that held its own graph would never be freed

    def unpack(packed: tuple[Tensor, int]) -> Tensor:
        tensor, version = packed
        if tensor._version != version:  # autograd itself looks for this only where there are no hooks
            raise ModifiedError
        return tensor

    with saved_tensors_hooks(pack, unpack):
        yield saved
