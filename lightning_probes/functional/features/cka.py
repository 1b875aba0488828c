"""Linear CKA from unbiased HSIC: Gram matrix, U-centring, HSIC_1, and the ratio of the sums.

    CKA(X, Y) = HSIC_1(X, Y) / sqrt(HSIC_1(X, X) HSIC_1(Y, Y))

Numerator and denominators are each summed over micro-batches before the division (Nguyen, Raghu & Kornblith
2021, arXiv:2010.15327). The biased estimator is not offered: it tends to 1 for any two layers with many more features
than the batch has samples (Murphy, Zylberberg & Fyshe 2024, arXiv:2405.01012).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_probes.functional.wide import widest


def linear_gram(features: Tensor) -> Tensor:
    """Gram matrix X Xᵀ of column-centred features.

    Centring does not change HSIC, but reduces rounding errors: a large common mean would have to cancel in the Gram
    matrix. Autocast is off inside, and half precision is cast to float32. Features that are equal in all samples give
    exactly zero.

    Args:
        features: (n, d).

    Returns:
        (n, n) in float32, or float64 for float64 features. Costs n² d multiplications and one copy of the features.

    Example:
        >>> linear_gram(torch.tensor([[1.0], [3.0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    centred = centre(features.to(torch.promote_types(features.dtype, torch.float32)))
    with torch.autocast(features.device.type, enabled=False):
        return centred @ centred.mT


def centre(features: Tensor) -> Tensor:
    """Features, (n, d), minus their mean over samples: a copy, exactly zero where all samples are equal."""
    first, mean = features[:1], features.mean(0, keepdim=True)
    # The mean of n equal numbers is off by less than n roundings. Without them, their differences are exactly zero.
    rounding = len(features) * torch.finfo(features.dtype).eps * first.abs()
    return features - torch.where((mean - first).abs() <= rounding, first, mean)


def check_samples(n: int) -> None:
    """Check that unbiased HSIC is defined.

    Raises:
        ValueError: If there are fewer than four samples.
    """
    if n < 4:
        raise ValueError(
            f"Unbiased HSIC needs at least 4 samples in every micro-batch, found {n}; choose micro_batch_size and "
            "num_samples so that the last micro-batch has at least 4 too."
        )


def u_center(gram: Tensor) -> Tensor:
    """U-centring: zero diagonal, then rows and columns that sum to zero (Szekely & Rizzo 2014, arXiv:1310.2926).

    A projection: U-centring a U-centred matrix changes nothing.

    Args:
        gram: (..., n, n), symmetric; its diagonal is not used.

    Returns:
        (..., n, n) in the device's widest dtype.

    Raises:
        ValueError: If the matrices are not square, or have fewer than four samples (unbiased HSIC is undefined).

    Example:
        >>> u_center(torch.eye(5) + 2.0).abs().max().item() < 1e-12
        True
    """
    n = gram.shape[-1]
    if gram.ndim < 2 or gram.shape[-2] != n:
        raise ValueError(f"Gram matrices must have shape (..., n, n), got {tuple(gram.shape)}.")
    check_samples(n)
    centred = gram.to(torch.promote_types(gram.dtype, widest(gram.device)), copy=True)
    diagonal = centred.diagonal(dim1=-2, dim2=-1)
    diagonal.zero_()
    sums = centred.sum(-1, keepdim=True)
    shares = sums / (n - 2) - sums.sum(-2, keepdim=True) / (2 * (n - 1) * (n - 2))
    centred.sub_(shares).sub_(shares.mT)  # in place: these matrices are most of the memory of a comparison
    diagonal.zero_()
    return centred


def hsic(rows: Tensor, columns: Tensor) -> Tensor:
    """Unbiased HSIC_1 of each row layer with each column layer (Song et al. 2012), by one matrix product.

    Args:
        rows: (..., L, n, n) U-centred Grams.
        columns: (..., M, n, n) U-centred Grams of the same n samples. Leading axes broadcast.

    Returns:
        (..., L, M): inner products of the matrices, divided by n (n - 3). The estimate is unbiased, so it can be
        negative. Averages over micro-batches are unbiased too, also if n differs between them.

    Raises:
        ValueError: If rows and columns do not have the same number of samples.

    Example:
        >>> grams = u_center(torch.eye(6).roll(1, 0).expand(2, 6, 6))
        >>> hsic(grams, grams[:1]).shape
        torch.Size([2, 1])
    """
    n = rows.shape[-1]
    if columns.shape[-1] != n:
        raise ValueError(
            f"HSIC compares layers on the same samples, but rows have {n} and columns {columns.shape[-1]}; pass the "
            "same micro-batch through both."
        )
    return rows.flatten(-2) @ columns.flatten(-2).mT / (n * (n - 3))


def self_hsic(grams: Tensor) -> Tensor:
    """HSIC_1 of each layer with itself: (..., L, n, n) U-centred Grams -> (..., L), non-negative.

    Example:
        >>> bool(self_hsic(u_center(torch.diag(torch.ones(4), 1))) > 0)
        True
    """
    n = grams.shape[-1]
    squares: Tensor = torch.linalg.vector_norm(grams, dim=(-2, -1)).square()
    return squares / (n * (n - 3))


def shuffled_null(rows: Tensor, columns: Tensor, generator: torch.Generator, num_permutations: int) -> Tensor:
    """HSIC_1 of each row layer with each column layer after permuting the samples of the column layers.

    Summed over micro-batches and normalized in the same way as `hsic`, these values are a null distribution of CKA with
    mean zero. All column layers share a permutation, which does not change their `self_hsic`.

    Args:
        rows: (..., L, n, n) U-centred Grams.
        columns: (..., M, n, n) U-centred Grams.
        generator: The only source of randomness.
        num_permutations: P, at least 1.

    Returns:
        (P, ..., L, M). Costs P times `hsic` and one permuted copy of ``columns`` at a time.

    Example:
        >>> grams = u_center(linear_gram(torch.randn(16, 3)))[None]
        >>> shuffled_null(grams, grams, torch.Generator().manual_seed(0), num_permutations=20).shape
        torch.Size([20, 1, 1])
    """
    n = columns.shape[-1]
    orders = permutations(n, num_permutations, generator, columns.device)
    # The matrices are symmetric: use the upper triangle only. Pairs of samples come first, so that a permutation moves
    # contiguous runs of M numbers, which is faster than moving single numbers.
    first, second = torch.triu_indices(n, n, 1, device=columns.device)
    pairs, rows = columns.flatten(-2).mT.contiguous(), rows[..., first, second]
    shuffled = (pairs.index_select(-2, order[first] * n + order[second]) for order in orders)
    return torch.stack([rows @ columns for columns in shuffled]) * (2 / (n * (n - 3)))


def permutations(n: int, number: int, generator: torch.Generator, device: torch.device) -> list[Tensor]:
    """Orders of n samples drawn from a generator on any device."""
    return [torch.randperm(n, generator=generator, device=generator.device).to(device) for _ in range(number)]


def normalize_hsic(cross: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """CKA from sums of HSIC over micro-batches.

    Args:
        cross: (..., L, M) sums of `hsic`.
        rows: (..., L) sums of `self_hsic`.
        columns: (..., M) sums of `self_hsic`.

    Returns:
        (..., L, M): at most 1; near 0, possibly negative, for unrelated layers; NaN for a layer whose features are
        equal in all samples (0 / 0). The ratio has a small bias, which shrinks with n.

    Example:
        >>> normalize_hsic(torch.tensor([[3.0]]), torch.tensor([9.0]), torch.tensor([4.0]))
        tensor([[0.5000]])
    """
    return cross / (rows[..., :, None] * columns[..., None, :]).sqrt()


def unbiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA of two feature matrices in one batch (Kornblith et al. 2019, arXiv:1905.00414; debiased by HSIC_1).

    Args:
        x: (n, d_x).
        y: (n, d_y), the same samples.

    Returns:
        A float64 scalar. Unchanged by orthogonal maps, isotropic scaling and translation of either side.

    Raises:
        ValueError: If there are fewer than four samples, or the numbers of samples differ.

    Example:
        >>> x = torch.arange(24.0).sin().reshape(8, 3)
        >>> round(unbiased_cka(x, 2 * x + 1).item(), 6)
        1.0
    """
    row, column = u_center(linear_gram(x)), u_center(linear_gram(y))
    cross = hsic(row[None], column[None])
    return normalize_hsic(cross, self_hsic(row)[None], self_hsic(column)[None]).squeeze()
