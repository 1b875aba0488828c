"""Lengths and zeros of many tensors at once, on their device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lengths(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor, without waiting for the device.

    Args:
        tensors: Any number of tensors, also sparse, complex or in half precision, on one device or several.

    Returns:
        Shape `(len(tensors),)`, on the device of the first one; float64 if one of them has it, float32 otherwise.

    Example:
        >>> lengths([torch.tensor([3.0, 4.0]), torch.tensor([2.0 + 0.0j])])
        tensor([5., 2.])
    """
    if not tensors:
        return torch.zeros(0)
    plain = [_real(_stored(tensor.detach())) for tensor in tensors]
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(plain):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(place)
    found: dict[int, Tensor] = {}
    for (_, dtype), places in kinds.items():
        exact = torch.float64 if dtype == torch.float64 else torch.float32  # half precision would round the sums
        norms = torch._foreach_norm([plain[place] for place in places], 2, dtype=exact)
        found |= dict(zip(places, norms, strict=True))
    wide = torch.float64 if any(dtype == torch.float64 for _, dtype in kinds) else torch.float32
    return torch.stack([found[place].to(plain[0].device, wide) for place in range(len(plain))])


def zeros(tensors: Sequence[Tensor]) -> Tensor:
    """How many entries of each tensor are exactly 0, shape `(len(tensors),)`, without waiting for the device.

    Example:
        >>> zeros([torch.tensor([0.0, 4.0, 0.0]), torch.eye(2).to_sparse()])
        tensor([2, 2])
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.long)
    there = [torch.count_nonzero(_stored(tensor.detach())) for tensor in tensors]
    sizes = torch.tensor([tensor.numel() for tensor in tensors], device=there[0].device)
    return sizes - torch.stack([count.to(sizes) for count in there])


def _stored(tensor: Tensor) -> Tensor:
    """The entries that are stored; the others are 0."""
    if tensor.layout is torch.strided:
        return tensor
    return (tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor.to_sparse()).values()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
