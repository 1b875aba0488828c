"""How far attention reaches: distances between tokens, weighted by attention."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from lightning_probes.functional.wide import at_least_single, widest


class Sums(IntEnum):
    """What is summed over queries, and the number of queries."""

    DISTANCE, UNIFORM, ENTROPY, PREFIX, QUERIES = range(5)


def grid_distances(grid: Sequence[int], spacing: float = 1.0) -> Tensor:
    """Distances between the cells of a grid, in the order of a flattened image: shape `(cells, cells)`.

    Args:
        grid: Number of cells along each axis.
        spacing: Distance between neighbouring cells.

    Example:
        >>> grid_distances((3,))
        tensor([[0., 1., 2.],
                [1., 0., 1.],
                [2., 1., 0.]])
    """
    cells = torch.cartesian_prod(*(torch.arange(float(size)) for size in grid)).reshape(-1, len(grid))
    return spacing * (cells[:, None] - cells).square().sum(-1).sqrt()


def distance_sums(
    weights: Tensor, opened: Tensor | None, distances: Tensor, prefix: int = 0, renormalize: bool = True
) -> Tensor:
    """Sums over samples and queries, for each head.

    A query counts if it is behind the prefix, some key behind the prefix is open to it and has weight, and some query
    may attend to it: padding counts nowhere.

    Args:
        weights: Attention, `(samples, heads, tokens, tokens)`.
        opened: Which keys a query may attend to, `(samples or 1, tokens or 1, tokens)`, or None if all.
        distances: Between the tokens behind the prefix.
        prefix: Number of leading tokens without a place, such as a CLS token.
        renormalize: Whether the weights behind the prefix are divided by their sum. If not, distances are 0 to the
            prefix.

    Returns:
        Shape `(heads, len(Sums))`: sums of the mean distance; of the mean distance if all open keys had equal weights;
        of the entropy of the renormalised weights; of the weight of the prefix; and the number of queries.

    Example:
        >>> distance_sums(torch.full((1, 1, 3, 3), 1 / 3), None, grid_distances((3,)))[0, Sums.DISTANCE] / 3
        tensor(0.8889, dtype=torch.float64)
    """
    weights = at_least_single(weights)
    distances = distances.to(weights.dtype)
    rows = weights[..., prefix:, prefix:]
    inside = rows.sum(-1)
    counts = inside != 0  # nan counts, and makes the results nan
    uniform = distances.mean(-1)
    if opened is not None:
        pairs = opened.expand(-1, weights.shape[-2], -1)
        attended = pairs.any(1)[:, None, prefix:]
        kept = pairs[:, prefix:, prefix:]
        counts = counts & (kept.any(-1)[:, None] & attended)
        kept = kept.to(distances.dtype)
        uniform = (torch.linalg.vecdot(kept, distances) / kept.sum(-1).clamp(min=1))[:, None]
    distance = torch.linalg.vecdot(rows, distances)
    if renormalize:
        distance = distance / inside
    logarithms = rows.clamp(min=torch.finfo(rows.dtype).tiny).log_()  # of zeros they would be slow
    entropy = inside.log() - torch.linalg.vecdot(rows, logarithms) / inside
    in_prefix = weights[..., prefix:, :prefix].sum(-1)
    columns = [distance, uniform, entropy, in_prefix, torch.ones((), device=weights.device)]
    zero = weights.new_zeros(())
    kind = widest(weights.device)
    return torch.stack([torch.where(counts, column, zero).sum((0, 2), dtype=kind) for column in columns], -1)
