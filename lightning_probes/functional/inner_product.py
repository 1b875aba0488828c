"""Inner products and norms of vectors with one element per parameter of a network.

A running float32 sum loses small terms: on CPU `torch.linalg.vector_norm` of ten million numbers has an error of up to
1e-3, of a hundred million numbers one percent, and so has an eigenvalue computed with it. Here only short pieces are
summed in float32; their sums are added in the widest dtype of the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_probes.functional.wide import widest

_PIECE, _MOST_PIECES = 2**12, 2**10


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two real vectors.

    Args:
        a: Shape `(n,)`.
        b: Like `a`.

    Returns:
        Shape `()`, in the device's widest dtype. For float32 vectors whose products all have the same sign, the
        relative error is below `sqrt(m) eps` for pieces of m numbers, because rounding errors add up like a random
        walk: 8e-6 up to four million numbers, 1e-4 for a billion.

    Example:
        >>> inner_product(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        tensor(11., dtype=torch.float64)
    """
    return torch.stack([torch.dot(x, y) for x, y in zip(_pieces(a), _pieces(b), strict=True)]).sum(
        dtype=widest(a.device)
    )


def norm(vector: Tensor) -> Tensor:
    """Euclidean length over the last dim.

    Args:
        vector: Shape `(..., n)`, real or complex.

    Returns:
        Shape `(...)`, in the device's widest dtype. For float32 the relative error is half of that of `inner_product`.

    Example:
        >>> norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
        tensor([5., 2.], dtype=torch.float64)
    """
    lengths = torch.stack([torch.linalg.vector_norm(piece, dim=-1) for piece in _pieces(vector)])
    length: Tensor = torch.linalg.vector_norm(lengths, dim=0, dtype=widest(vector.device))
    return length


def _pieces(vector: Tensor) -> Sequence[Tensor]:
    size = max(_PIECE, -(-vector.shape[-1] // _MOST_PIECES))
    pieces: Sequence[Tensor] = torch.split(vector, size, -1)
    return pieces
