"""Trace of a matrix that is known by its products with vectors (Hutchinson 1989)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def hutchinson_samples(
    matvec: Callable[[Tensor], Tensor], like: Tensor, num_vectors: int, generator: torch.Generator
) -> Tensor:
    """Independent samples of v^T H v for random signs v, each with mean trace(H).

    Args:
        matvec: Maps v, shape `(n,)`, to H v.
        like: A tensor with the shape, dtype and device of v; its values are not read.
        num_vectors: Number of samples.
        generator: Source of the signs. It may be on another device than `like`: one on the CPU gives the same signs
            everywhere.

    Returns:
        The samples, shape `(num_vectors,)`. Their mean estimates trace(H); over the random vectors, each has variance
        2 (||H||_F^2 - sum_i H_ii^2) for a symmetric H, so none at all for a diagonal one. Cost: `num_vectors` products.

    Raises:
        ValueError: If `num_vectors` is below 1.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> hutchinson_samples(lambda v: matrix @ v, torch.empty(3), 2, torch.Generator().manual_seed(0))
        tensor([6., 6.])
    """
    if num_vectors < 1:
        raise ValueError(f"num_vectors must be at least 1, got {num_vectors}")
    samples = []
    for _ in range(num_vectors):
        bits = torch.randint(2, like.shape, generator=generator, device=generator.device, dtype=torch.int8)
        signs = bits.to(like) * 2 - 1
        samples.append(signs @ matvec(signs))
    return torch.stack(samples)
