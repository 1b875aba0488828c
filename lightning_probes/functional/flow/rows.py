"""One row per sample, and the norms of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_probes.functional.plain import plain
from lightning_probes.functional.wide import at_least_single, widest


def rows(tensor: Tensor, dim: int) -> Tensor:
    """The tensor with one row per sample, in single precision or better.

    Args:
        tensor: Any tensor with at least one dim.
        dim: The dim of the samples.

    Example:
        >>> rows(torch.zeros(7, 3, 5), dim=1).shape
        torch.Size([3, 35])
    """
    tensor = plain(tensor)
    return at_least_single(tensor.movedim(dim, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None])


def row_norms(matrix: Tensor) -> Tensor:
    """The Euclidean norm of each row, in the widest precision: squares of small gradients leave the range of float32.

    Example:
        >>> row_norms(torch.tensor([[3e-30, 4e-30]]))
        tensor([5.0000e-30], dtype=torch.float64)
    """
    # Conversion and norm, one after the other, take less time than a norm with `dtype`.
    norms: Tensor = torch.linalg.vector_norm(matrix.to(widest(matrix.device)), dim=1)
    return norms
