"""Trace of a matrix that is known by its products with vectors (Hutchinson 1989), some directions of it exactly."""

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


class KnownDirections:
    """Orthonormal directions with their products, remembered as they are asked for, such as Lanczos' basis.

    A trace need not be estimated where it is known: with Q the directions, trace(H) = trace(Q^T H Q) + that of the
    rest, and the rest lacks the large eigenvalues that Q found, which make up much of the spread (deflation, Gambhir et
    al. 2017, arXiv:1603.05988; Hutch++, Meyer et al. 2021, arXiv:2010.09649).

    Args:
        matvec: Maps v, shape `(n,)`, to H v for a symmetric H. Must be given orthonormal vectors.
        sizes: Of the blocks of H, in order, summing to n. None for H as a whole.

    Attributes:
        trace: Sum of q_i (H q)_i over each block and the directions so far, shape `(blocks,)`, float64.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> known = KnownDirections(lambda v: matrix @ v, sizes=[1, 2])
        >>> known(torch.tensor([0.0, 0.0, 1.0]))
        tensor([0., 0., 3.])
        >>> known.trace, known.without(torch.ones(3))
        (tensor([0., 3.], dtype=torch.float64), tensor([1., 1., 0.]))
    """

    def __init__(self, matvec: Callable[[Tensor], Tensor], sizes: Sequence[int] | None = None) -> None:
        self._matvec, self._sizes = matvec, sizes
        self._directions: list[Tensor] = []
        self.trace: Tensor | float = 0.0

    def __call__(self, direction: Tensor) -> Tensor:
        """The product with a new direction, remembered without a copy."""
        product = self._matvec(direction)
        self._directions.append(direction)
        self.trace = self.trace + _by_block(direction * product, self._sizes).double()
        return product

    def without(self, vector: Tensor) -> Tensor:
        """A vector less its components along the directions."""
        for direction in self._directions:
            vector = torch.addcmul(vector, direction, direction @ vector, value=-1)
        return vector


def hutchinson_samples(
    matvec: Callable[[Tensor], Tensor],
    signs: Tensor,
    sizes: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    known: KnownDirections | None = None,
) -> Tensor:
    """Samples of v^T H v for random signs v, each with mean trace(H), apart for the diagonal blocks of H.

    The part of a block is the sum of v_i (H v)_i over it, which has mean trace(H_aa), since the products with other
    signs average out. So the blocks cost no further products.

    Args:
        matvec: Maps v, shape `(n,)`, to H v.
        signs: The vectors v, shape `(vectors, n)`, of `random_signs`.
        sizes: Of the blocks, in order, summing to n. None for H as a whole.
        dtype: Of the vectors that `matvec` is given.
        known: Directions to leave out of the vectors, drawn without regard to these signs. The mean of a sample is
            then trace(H) less `known.trace`.

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
    samples = []
    for row in signs:
        vector = row.to(dtype) if known is None else known.without(row.to(dtype))
        samples.append(_by_block(vector * matvec(vector), sizes))
    return torch.stack(samples)


def _by_block(values: Tensor, sizes: Sequence[int] | None) -> Tensor:
    parts = torch.split(values, [len(values)] if sizes is None else list(sizes))
    return torch.stack([part.sum() for part in parts])
