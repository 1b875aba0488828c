"""The greedy portfolio over a matrix of losses, one row a task and one column a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def normalised(losses: Matrix) -> Matrix:
    """Each task's losses on the scale from 0 (its best configuration) to 1 (its worst); a missing loss (NaN) is 1.

    A task whose configurations are all alike tells nothing, and has 0 for each of them.

    Example:
        >>> normalised(np.array([[2.0, 6.0, 4.0], [5.0, np.nan, 5.0]])).tolist()
        [[0.0, 1.0, 0.5], [0.0, 1.0, 0.0]]
    """
    missing = np.isnan(losses)
    low = np.where(missing, np.inf, losses).min(axis=1, keepdims=True)
    high = np.where(missing, -np.inf, losses).max(axis=1, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    with np.errstate(invalid="ignore"):  # infinities of a task without any loss
        return np.where(missing, 1.0, (losses - low) / spread)


def greedy_order(losses: Matrix, k: int, seed: int | None = None) -> tuple[int, ...]:
    """Add the configuration that most lowers the mean over tasks of the best loss so far, until none lowers it.

    Each portfolio is the beginning of every longer one.

    Args:
        losses: Tasks × configurations, normalised.
        k: The most configurations.
        seed: Among equals the first one is chosen; with a seed, one at random.

    Example:
        >>> greedy_order(np.array([[0.0, 1.0, 0.4], [1.0, 0.0, 0.4]]), 3)  # a compromise, then two specialists
        (2, 0, 1)
    """
    columns = np.arange(losses.shape[1])
    if seed is not None:
        columns = np.random.default_rng(seed).permutation(columns)
    best, chosen = np.full(len(losses), np.inf), list[int]()
    while len(chosen) < min(k, len(columns)):
        means = np.minimum(losses[:, columns], best[:, None]).mean(axis=0)
        if means.min() >= best.mean():
            break
        chosen.append(int(columns[means.argmin()]))
        best = np.minimum(best, losses[:, chosen[-1]])
    return tuple(chosen)


def average_order(losses: Matrix, k: int) -> tuple[int, ...]:
    """The k configurations with the lowest mean over tasks; among equals the first."""
    return tuple(losses.mean(axis=0).argsort(kind="stable")[:k].tolist())


def best_so_far(losses: Matrix, order: Sequence[int]) -> Matrix:
    """Mean over tasks of the lowest loss among the first 1, 2, … configurations of an order."""
    means: Matrix = np.minimum.accumulate(losses[:, list(order)], axis=1).mean(axis=0)
    return means


def score_of_choice(losses: Matrix, scores: Matrix, tried: Sequence[int]) -> float:
    """What a task gets that tries some configurations and keeps the one with the lowest loss.

    Args:
        losses: The task's losses, by which the configuration is chosen.
        scores: The task's scores, by which the chosen one is judged; among equal losses, their mean.
        tried: Which configurations.
    """
    tried = list(tried)
    return float(scores[tried][losses[tried] == losses[tried].min()].mean())


def score_of_random_search(losses: Matrix, scores: Matrix, k: int) -> float:
    """`score_of_choice` in expectation over all sets of k different configurations, in closed form.

    In ascending order of loss, configuration i is the best of a random set with probability C(n-1-i, k-1) / C(n, k).

    Example:
        >>> losses = np.array([0.0, 1.0, 0.5])
        >>> [score_of_random_search(losses, losses, k) for k in (1, 2, 3)]
        [0.5, 0.16666666666666666, 0.0]
    """
    n = len(losses)
    k = min(k, n)
    alike = np.array([scores[losses == loss].mean() for loss in losses])  # which of several equals is kept is chance
    chances = [comb(n - 1 - rank, k - 1) / comb(n, k) for rank in range(n)]
    return float(np.dot(chances, alike[losses.argsort(kind="stable")]))
