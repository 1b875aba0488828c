"""The greedy portfolio and what it is compared with, against closed forms and against trying everything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from lightning_probes.studies.greedy import (
    average_order,
    best_so_far,
    greedy_order,
    normalised,
    score_of_choice,
    score_of_random_search,
)

TOY = np.array([[0.0, 1.0, 0.4], [1.0, 0.0, 0.4]])

# Eighths: sums and means over a power of two of them are exact.
EIGHTHS = st.integers(0, 64).map(lambda n: n / 8)
TABLES = nps.arrays(np.float64, st.tuples(st.sampled_from([1, 2, 4]), st.integers(2, 6)), elements=EIGHTHS)
HOLED = nps.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.one_of(EIGHTHS, st.just(np.nan))
)


def test_a_compromise_comes_before_two_specialists() -> None:
    assert greedy_order(normalised(TOY), 3) == (2, 0, 1)
    assert best_so_far(TOY, (2, 0, 1)).tolist() == [0.4, 0.2, 0.0]


def reference(losses: Any, k: int) -> tuple[int, ...]:
    """Each step by trying every set."""
    chosen: list[int] = []

    def loss(columns: list[int]) -> float:
        return float(losses[:, columns].min(axis=1).mean()) if columns else float("inf")

    for _ in range(k):
        means = {j: loss([*chosen, j]) for j in range(losses.shape[1]) if j not in chosen}
        if not means or min(means.values()) >= loss(chosen):
            break
        chosen.append(min(means, key=lambda j: (means[j], j)))
    return tuple(chosen)


@given(TABLES, st.integers(1, 6))
def test_each_step_is_the_best_of_all_that_could_be_added(losses: Any, k: int) -> None:
    assert greedy_order(losses, k) == reference(losses, k)


@given(HOLED, st.integers(1, 5))
def test_portfolio_is_the_beginning_of_a_longer_one(losses: Any, k: int) -> None:
    scaled = normalised(losses)
    assert greedy_order(scaled, k) == greedy_order(scaled, k + 1)[:k]


@given(TABLES)
def test_pair_of_configurations_is_at_most_the_known_factor_from_the_best_pair(losses: Any) -> None:
    """The gain of a greedy choice over the worst, which is a submodular function, is at least 1 - 1/e of the best."""
    scaled = normalised(losses)

    def gain(columns: tuple[int, ...]) -> float:
        return 1 - float(scaled[:, list(columns)].min(axis=1).mean())

    best = max(gain(pair) for pair in itertools.combinations(range(scaled.shape[1]), 2))
    assert gain(greedy_order(scaled, 2)) >= (1 - 1 / np.e) * best - 1e-12


@given(HOLED, st.sampled_from([0.25, 0.5, 2.0, 8.0]), st.integers(-8, 8))
def test_positive_affine_map_of_a_tasks_loss_changes_nothing(losses: Any, scale: float, shift: int) -> None:
    mapped = losses.copy()
    mapped[0] = scale * losses[0] + shift
    assert normalised(mapped).tolist() == normalised(losses).tolist()


def test_constant_task_is_zero_and_a_missing_loss_one() -> None:
    losses = np.array([[3.0, 3.0, np.nan], [np.nan, np.nan, np.nan]])
    assert normalised(losses).tolist() == [[0, 0, 1], [1, 1, 1]]


def test_nothing_is_added_that_does_not_improve() -> None:
    assert greedy_order(np.array([[0.0, 0.5, 1.0], [0.0, 0.2, 1.0]]), 3) == (0,)


def test_first_of_equals_is_chosen_and_with_a_seed_any() -> None:
    equal = np.zeros((2, 5))
    assert greedy_order(equal, 5) == (0,)
    assert {greedy_order(equal, 5, seed)[0] for seed in range(40)} == set(range(5))


def test_average_order_is_by_mean_and_first_seen() -> None:
    assert average_order(np.array([[0.5, 0.0, 0.5, 1.0]]), 3) == (1, 0, 2)


@given(
    nps.arrays(np.float64, 6, elements=st.integers(0, 3).map(float)),
    nps.arrays(np.float64, 6, elements=EIGHTHS),
    st.integers(1, 6),
)
def test_random_search_in_closed_form_is_the_mean_over_all_sets(losses: Any, scores: Any, k: int) -> None:
    every = [score_of_choice(losses, scores, tried) for tried in itertools.combinations(range(6), k)]
    assert score_of_random_search(losses, scores, k) == pytest.approx(float(np.mean(every)), rel=1e-12, abs=1e-12)


def test_random_search_over_more_than_there_are_finds_the_best() -> None:
    assert score_of_random_search(TOY[0], TOY[0], 99) == 0.0


def test_chosen_by_one_metric_and_judged_by_another() -> None:
    assert score_of_choice(np.array([1.0, 0.0]), np.array([0.25, 0.75]), [0, 1]) == 0.75
