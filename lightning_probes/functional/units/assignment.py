"""The linear assignment problem, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_probes.functional.wide import on_host

_ROUNDS = 200  # of bids, after which rows that are still free are assigned one by one
_FREE = -1


def assignment(gains: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """The permutation p that maximises the sum over k of `gains[k, p[k]]`.

    Most rows find a column by bidding for it, the others along shortest augmenting paths (Jonker and Volgenant 1987).
    The sum is that of the optimum up to rounding in float64. Among equal optima the choice depends on the input alone.

    Args:
        gains: Shape `(n, n)`, finite.

    Returns:
        Shape `(n,)`, int64, on the CPU. The time grows at most like n³.

    Raises:
        ValueError: If the matrix is not square, or not finite.

    Example:
        >>> assignment([[1.0, 5.0, 0.0], [4.0, 6.0, 0.0], [0.0, 0.0, 3.0]]).tolist()
        [1, 0, 2]
    """
    costs = -on_host(torch.as_tensor(gains))
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1]:
        raise ValueError(f"gains must be a square matrix, got shape {tuple(costs.shape)}")
    if not bool(costs.isfinite().all()):
        raise ValueError("gains must be finite, but some are not")
    if len(costs) < 2:
        return torch.arange(len(costs))
    prices, column_of, row_of = _bid(costs)
    paid, rows = (costs - prices).amin(1).tolist(), costs.unbind()
    for row in (column_of == _FREE).nonzero()[:, 0].tolist():
        _assign(row, costs, rows, prices, paid, column_of, row_of)
    return column_of


def _bid(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each free row takes the column that costs it least, and lowers its price until the second best is as good.

    Returns:
        Prices of the columns, the column of each row, and the row of each column. No row could do better with another
        column than with its own.
    """
    prices = costs.new_zeros(len(costs))
    column_of, row_of = torch.full((2, len(costs)), _FREE)
    bidding = torch.ones(len(costs), dtype=torch.bool)
    for _ in range(_ROUNDS):
        rows = (bidding & (column_of == _FREE)).nonzero()[:, 0]
        values, columns = (costs[rows] - prices).topk(2, largest=False)
        margins, wanted = values[:, 1] - values[:, 0], columns[:, 0]
        serious = (margins > 0) | (row_of[wanted] == _FREE)
        bidding[rows[~serious]] = False  # rows with two equal choices would displace each other for ever
        order = margins.argsort(stable=True)
        order = order[serious[order]]
        order = order[wanted[order].argsort(stable=True)]  # of the bids for a column, the last is the highest
        last = torch.ones_like(order, dtype=torch.bool)
        last[:-1] = wanted[order[1:]] != wanted[order[:-1]]
        if not len(order := order[last]):
            break
        rows, wanted = rows[order], wanted[order]
        prices[wanted] -= margins[order]
        displaced = row_of[wanted]
        column_of[displaced[displaced != _FREE]] = _FREE
        column_of[rows], row_of[wanted] = wanted, rows
    return prices, column_of, row_of


def _assign(
    row: int, costs: Tensor, rows: Sequence[Tensor], prices: Tensor, paid: list[float], column_of: Tensor,
    row_of: Tensor,
) -> None:  # fmt: skip
    """Give a row a column by the cheapest chain of rows that pass on theirs, the last of which takes a free column."""
    members, left, at, offsets = [row], [_FREE], [0.0], [-paid[row]]  # rows reached, and their columns and distances
    open_prices = prices.clone()  # -inf for the columns that have been passed on
    distances = rows[row] - prices - paid[row]
    while True:
        nearest = distances.min(0)
        distance, column = float(nearest.values), int(nearest.indices)
        if distance == at[-1] and len(free := ((distances == distance) & (row_of == _FREE)).nonzero()):
            column = int(free[0])
        if (reached := int(row_of[column])) == _FREE:
            break
        members.append(reached)
        left.append(column)
        at.append(distance)
        offsets.append(distance - paid[reached])
        distances[column], open_prices[column] = torch.inf, -torch.inf
        torch.minimum(distances, (rows[reached] - open_prices).add_(offsets[-1]), out=distances)
    found = torch.tensor(members), torch.tensor(offsets, dtype=prices.dtype)
    end = len(members)
    while end:  # back from the free column, each to the member from which it was reached at this distance
        end = int((costs[found[0][:end], column] + found[1][:end]).argmin())
        column_of[members[end]], row_of[column] = column, members[end]
        column = left[end]
    for member, there in zip(members, at, strict=True):
        paid[member] += distance - there
    if len(left) > 1:
        prices[left[1:]] += torch.tensor(at[1:], dtype=prices.dtype) - distance
