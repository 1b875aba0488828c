"""Trace of a matrix that is known by its products with vectors (Hutchinson 1989)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def random_signs(like: Tensor, num_vectors: int, generator: torch.Generator) -> Tensor:
    """Vectors of independent random signs.

    Args:
        like: A tensor with the shape `(n,)` and the device of one vector; its values are not read.
        num_vectors: Number of vectors.
        generator: Source of the signs. It may be on another device than `like`: one on the CPU gives the same signs
            everywhere.

    Returns:
        The vectors, shape `(num_vectors, n)`, int8.

    Raises:
        ValueError: If `num_vectors` is below 1.

    Example:
        >>> random_signs(torch.empty(3), 2, torch.Generator().manual_seed(0)).abs()
        tensor([[1, 1, 1],
                [1, 1, 1]], dtype=torch.int8)
    """
    if num_vectors < 1:
        raise ValueError(f"num_vectors must be at least 1, got {num_vectors}")
    signs = torch.empty((num_vectors, *like.shape), dtype=torch.int8, device=like.device)
    for row in signs:
        bits = torch.randint(2, like.shape, generator=generator, device=generator.device, dtype=torch.int8)
        row.copy_(bits).mul_(2).sub_(1)
    return signs


def hutchinson_samples(
    matvec: Callable[[Tensor], Tensor],
    signs: Tensor,
    sizes: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Samples of v^T H v for random signs v, each with mean trace(H), apart for the diagonal blocks of H.

    The part of a block is the sum of v_i (H v)_i over it, which has mean trace(H_aa), since the products with other
    signs average out. So the blocks cost no further products.

    Args:
        matvec: Maps v, shape `(n,)`, to H v.
        signs: The vectors v, shape `(vectors, n)`, of `random_signs`.
        sizes: Of the blocks, in order, summing to n. None for H as a whole.
        dtype: Of the vectors that `matvec` is given.

    Returns:
        The samples, shape `(vectors, blocks)`; a row sums to v^T H v. The mean over rows estimates the traces. Over the
        random vectors, that of a symmetric H as a whole has variance 2 (||H||_F^2 - sum_i H_ii^2), so none at all
        for a diagonal one. Cost: a product a vector.

    Raises:
        RuntimeError: If `sizes` does not sum to n.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> signs = random_signs(matrix[0], 2, torch.Generator().manual_seed(0))
        >>> hutchinson_samples(lambda v: matrix @ v, signs, sizes=[1, 2])
        tensor([[1., 5.],
                [1., 5.]])
    """
    blocks = [signs.shape[1]] if sizes is None else list(sizes)
    samples = []
    for row in signs:
        vector = row.to(dtype)
        samples.append(torch.stack([part.sum() for part in (vector * matvec(vector)).split(blocks)]))
    return torch.stack(samples)
