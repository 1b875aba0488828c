"""Trace of a matrix from its products with vectors (Hutchinson 1989), with some directions taken exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_probes.functional.wide import widest


def random_signs(like: Tensor, num_vectors: int, generator: torch.Generator) -> Tensor:
    """Vectors of independent random signs.

    Args:
        like: A tensor with the shape `(n,)` and the device of one vector; its values are not read.
        num_vectors: Number of vectors.
        generator: Source of the signs. It may be on another device than `like`; a CPU generator gives the same signs
            on every device.

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
    """Products with orthonormal directions, the first few of which are kept: Lanczos' basis, for instance.

    With Q the directions and P = I - Q Q^T, trace(H) = trace(Q^T H Q) + trace(P H P). The first term is exact, so only
    the second needs an estimate. P removes the large eigenvalues that Q has found, which cause much of the variance
    (deflation, Gambhir et al. 2017, arXiv:1603.05988; Hutch++, Meyer et al. 2021, arXiv:2010.09649). If no eigenvalue
    stands out, or H is diagonal, plain random signs have the smaller variance.

    Args:
        matvec: Maps v, shape `(n,)`, to H v for a symmetric H. Must be given orthonormal vectors.
        sizes: Sizes of the blocks of H, in order, summing to n. None for H as a whole.
        most: Number of directions to keep. Later directions are multiplied, but not kept.

    Attributes:
        most: As given.
        trace: Sum of q_i (H q)_i over each block and the directions, shape `(blocks,)`, in the device's widest
            dtype; 0 before the first.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> known = KnownDirections(lambda v: matrix @ v, sizes=[1, 2])
        >>> known(torch.tensor([0.0, 0.0, 1.0]))
        tensor([0., 0., 3.])
        >>> known.trace
        tensor([0., 3.], dtype=torch.float64)
    """

    def __init__(self, matvec: Callable[[Tensor], Tensor], sizes: Sequence[int] | None = None, most: int = 7) -> None:
        self._matvec, self._sizes, self.most = matvec, sizes, most
        self._room: Tensor | None = None
        self._count = 0
        self.trace: Tensor | float = 0.0

    @property
    def directions(self) -> Tensor | None:
        """The directions kept, shape `(directions, n)`; None before the first product."""
        return None if self._room is None else self._room[: self._count]

    def __call__(self, direction: Tensor) -> Tensor:
        """The product with a direction."""
        product = self._matvec(direction)
        if self._room is None:
            self._room = direction.new_empty(self.most, len(direction))
        if self._count < self.most:
            self._room[self._count] = direction
            self._count += 1
            self.trace = self.trace + _by_block(direction * product, self._sizes).to(widest(direction.device))
        return product


class ProjectedSigns:
    """Random signs minus their components along orthonormal directions; made one at a time to save memory.

    Args:
        signs: From `random_signs`, shape `(vectors, n)`, drawn independently of the directions.
        directions: Shape `(directions, n)`, in `dtype`.
        dtype: Dtype of the vectors.

    Example:
        >>> signs = torch.ones(2, 3, dtype=torch.int8)
        >>> list(ProjectedSigns(signs, torch.tensor([[0.0, 0.0, 1.0]])))
        [tensor([1., 1., 0.]), tensor([1., 1., 0.])]
    """

    def __init__(self, signs: Tensor, directions: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        self._signs = signs
        self._basis = signs.new_empty((0, signs.shape[1]), dtype=dtype) if directions is None else directions
        self._components = [self._basis @ row.to(dtype) for row in signs]

    def __iter__(self) -> Iterator[Tensor]:
        for row, components in zip(self._signs, self._components, strict=True):
            yield row.to(components.dtype).addmv_(self._basis.mT, components, alpha=-1)


def hutchinson_samples(
    matvec: Callable[[Tensor], Tensor], vectors: Iterable[Tensor], sizes: Sequence[int] | None = None
) -> Tensor:
    """Samples of v^T H v for random vectors v, one column for each diagonal block of H.

    For random signs the mean of v^T H v is trace(H). The part of a block H_aa is the sum of v_i (H v)_i over its
    indices; its mean is trace(H_aa), because products of different signs average to zero. The blocks therefore need no
    further matrix-vector products. For `ProjectedSigns` each mean is smaller by `KnownDirections.trace` of the block.

    Args:
        matvec: Maps v, shape `(n,)`, to H v.
        vectors: The vectors v, each of shape `(n,)` and in the dtype of `matvec`, such as `ProjectedSigns`.
        sizes: Sizes of the blocks, in order, summing to n. None for H as a whole.

    Returns:
        The samples, shape `(vectors, blocks)`; a row sums to v^T H v. With random signs and a symmetric H the variance
        of v^T H v is 2 (||H||_F^2 - sum_i H_ii^2), which is 0 for a diagonal H. With projected signs the same holds
        for P H P. Cost: one product per vector.

    Raises:
        RuntimeError: If `sizes` does not sum to n.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        >>> signs = random_signs(matrix[0], 2, torch.Generator().manual_seed(0))
        >>> hutchinson_samples(lambda v: matrix @ v, ProjectedSigns(signs), sizes=[1, 2])
        tensor([[1., 5.],
                [1., 5.]])
    """
    return torch.stack([_by_block(vector * matvec(vector), sizes) for vector in vectors])


def _by_block(values: Tensor, sizes: Sequence[int] | None) -> Tensor:
    parts = torch.split(values, [len(values)] if sizes is None else list(sizes))
    return torch.stack([part.sum() for part in parts])
