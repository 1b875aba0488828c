"""Largest eigenvalue of a symmetric matrix from its products with vectors.

Lanczos 1950, with full reorthogonalisation: in floating point the basis loses orthogonality as soon as an eigenvalue
has converged, and copies of that eigenvalue appear (Paige 1976). The basis is small here, so each new vector is
orthogonalised against all of it, twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_probes.functional.inner_product import inner_product, norm
from lightning_probes.functional.wide import on_host

_MIN_MATVECS = 7
_ROWS_PER_BLOCK = 8


@dataclass(frozen=True, eq=False)
class Eigenpair:
    """An approximate eigenvalue with its eigenvector and an error bound.

    Args:
        value: The eigenvalue; nan if a product was not finite.
        vector: The eigenvector, unit length, shape `(n,)`; the unit starting vector if a product was not finite.
        residual: Length of `H vector - value * vector` over `|value|`: some eigenvalue lies within this relative
            distance of `value`. Zero for the zero matrix, nan if a product was not finite.
        matvecs: Number of products used.
        converged: Whether `residual` reached the tolerance after enough products to be reliable.
    """

    value: float
    vector: Tensor
    residual: float
    matvecs: int
    converged: bool


def lanczos_top_eigenpair(
    matvec: Callable[[Tensor], Tensor], start: Tensor, max_matvecs: int = 30, tolerance: float = 1e-3
) -> Eigenpair:
    """Largest eigenvalue in the algebraic sense (not in magnitude) of a symmetric matrix H, and its eigenvector.

    All decisions compare ratios, so H and 1e-8 H take the same steps. The residual bounds the distance to *an*
    eigenvalue. It is the largest one only if the starting vector has a component along its eigenvector. An earlier
    eigenvector may have no such component. Two measures help: a random vector of the same length (own generator, fixed
    seed) is added to the start, and the residual is trusted only after 7 products or when the space is exhausted. This
    finds a largest eigenvalue that stands out, from any other eigenvector, and a good start still saves a fifth to a
    half of the products. No method that only sees products with H can rule out a larger eigenvalue: started at the
    exact eigenvector of an eigenvalue 5 % below the largest, this function often returns that one, an error of 5 %.

    Args:
        matvec: Maps v, shape `(n,)`, to H v.
        start: Vector to start from, shape `(n,)`, not zero: random, or the eigenvector of an earlier, similar matrix.
        max_matvecs: Maximum number of products.
        tolerance: Relative residual at which to stop.

    Returns:
        The eigenpair. The relative error of the eigenvalue is at most `residual`, and about `residual` squared over the
        relative gap to the next eigenvalue. The residual comes from the recurrence and is never below the rounding
        error of H. An eigenvalue that is zero up to rounding is therefore not reported as converged (unless H is zero).
        Cost: `matvecs` products, one host synchronisation each, and `matvecs` vectors of memory, rounded up to a
        multiple of 8.

    Raises:
        ValueError: If `start` is zero, not finite or not a vector, or `max_matvecs` is below 1.

    Example:
        >>> matrix = torch.diag(torch.tensor([-9.0, 1.0, 4.0]))
        >>> pair = lanczos_top_eigenpair(lambda v: matrix @ v, start=torch.ones(3))
        >>> round(pair.value, 4), pair.matvecs, pair.converged
        (4.0, 3, True)
    """
    if max_matvecs < 1:
        raise ValueError(f"max_matvecs must be at least 1, got {max_matvecs}")
    product = _mixed_start(start)
    size, rounding = start.numel(), torch.finfo(start.dtype).eps

    blocks: list[Tensor] = []  # the basis, a few rows at a time: memory grows with the products, not with max_matvecs
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    previous, length = None, norm(product)
    while True:
        row = len(diagonal) % _ROWS_PER_BLOCK
        if row == 0:
            blocks.append(start.new_empty(min(_ROWS_PER_BLOCK, size), size))
        direction = torch.div(product, length, out=blocks[-1][row])
        basis = [*blocks[:-1], blocks[-1][: row + 1]]

        product = matvec(direction).detach()
        alpha = inner_product(direction, product)
        # First remove the two large components, then what rounding left along the whole basis.
        product = torch.addcmul(product, direction, alpha, value=-1)
        if previous is not None:
            product.addcmul_(previous, length, value=-1)
        for block in basis:
            product.addmv_(block.mT, block @ product, alpha=-1)
        previous, length = direction, norm(product)
        values = torch.stack([alpha, length]).tolist()  # the step's one synchronisation
        diagonal.append(values[0])
        matvecs = len(diagonal)
        if not all(map(math.isfinite, values)):
            return Eigenpair(math.nan, blocks[0][0].clone(), math.nan, matvecs, converged=False)

        value, weights = _top_of_tridiagonal(diagonal, off_diagonal)
        scale = max(map(abs, [*diagonal, *off_diagonal]))
        error = max(values[1] * abs(weights[-1].item()), rounding * scale)
        residual = 0.0 if error == 0 else error / abs(value) if value else math.inf
        exhausted = matvecs == size or values[1] <= 10 * rounding * scale
        converged = residual <= tolerance and (exhausted or matvecs >= _MIN_MATVECS)
        if converged or exhausted or matvecs == max_matvecs:
            break
        off_diagonal.append(values[1])

    vector = torch.zeros_like(start)
    for part, block in zip(torch.split(weights.to(start), [len(block) for block in basis]), basis, strict=True):
        vector.addmv_(block.mT, part)
    return Eigenpair(value, _unit(vector), residual, matvecs, converged)


def _mixed_start(start: Tensor) -> Tensor:
    """The unit vector along the sum of start and a random vector of the same length."""
    if start.ndim != 1 or start.numel() == 0:
        raise ValueError(f"start must be a vector with at least one element, got shape {tuple(start.shape)}")
    largest = start.abs().amax().item()
    if not 0 < largest < math.inf:
        raise ValueError(f"start must be finite and not zero, but its largest magnitude is {largest}")
    generator = torch.Generator(device=start.device).manual_seed(0)
    noise = torch.randn(start.shape, generator=generator, dtype=start.dtype, device=start.device)
    unit = _unit(start / largest)  # divide first, so that squares neither overflow nor underflow
    mixed = unit + _unit(noise)
    length = norm(mixed)
    return torch.where(length > 1e-3, mixed / length, unit)  # both may cancel, which often happens for n = 1


def _unit(vector: Tensor) -> Tensor:
    return vector / norm(vector)


def _top_of_tridiagonal(diagonal: list[float], off_diagonal: list[float]) -> tuple[float, Tensor]:
    """Largest eigenvalue of the small tridiagonal matrix and its eigenvector, in float64 on the host."""
    matrix = torch.diag(on_host(diagonal))
    if off_diagonal:
        matrix += torch.diag(on_host(off_diagonal), diagonal=-1)
    values, vectors = torch.linalg.eigh(matrix)  # reads the lower triangle
    return float(values[-1]), vectors[:, -1]
