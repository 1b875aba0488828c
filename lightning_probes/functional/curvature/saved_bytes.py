"""How much memory an autograd graph holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class ModifiedError(RuntimeError):
    """A tensor that the kept graph needs was changed in place."""


@contextmanager
def counting_saved_bytes() -> Iterator[dict[int, int]]:
    """Bytes that autograd saves for a backward pass inside the block, by storage.

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
        return tensor.detach(), tensor._version  # detached: an output that holds its own graph would never be freed

    def unpack(packed: tuple[Tensor, int]) -> Tensor:
        tensor, version = packed
        if tensor._version != version:  # with hooks in place autograd does not check this itself
            raise ModifiedError
        return tensor

    with saved_tensors_hooks(pack, unpack):
        yield saved
