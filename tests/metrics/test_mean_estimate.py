from __future__ import annotations

import itertools
import math
import pickle
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_probes.metrics import Estimate, MeanEstimate

finite = st.floats(-1e3, 1e3)


def estimate(*batches: object, weights: object = 1.0) -> Estimate:
    metric = MeanEstimate()
    for batch in batches:
        metric.update(torch.as_tensor(batch, dtype=torch.float64), weights)
    return metric.compute()


@given(batches=st.lists(st.lists(finite, max_size=5), min_size=1).filter(lambda batches: sum(map(len, batches)) >= 2))
def test_batches_of_any_size_give_the_mean_and_standard_error_of_all_values(batches: list[list[float]]):
    values = np.concatenate(batches)
    mean, standard_error, count = estimate(*batches)
    assert count == len(values)
    assert mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-10)
    assert standard_error == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, rel=1e-9, abs=1e-10)


def test_any_shape_counts_one_value_per_element():
    assert estimate(torch.arange(6.0).reshape(2, 1, 3)) == estimate(torch.arange(6.0))
    assert estimate(1.0, 2.0) == Estimate(1.5, 0.5, 2)


def test_a_spread_far_below_the_mean_keeps_its_digits():
    values = 1e6 + 1e-2 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = estimate(*values.split(7))
    exact = statistics.stdev(values.tolist()) / 1000**0.5  # in rational arithmetic
    assert found.standard_error == pytest.approx(exact, rel=1e-7)
    assert found.mean == pytest.approx(statistics.mean(values.tolist()), rel=1e-14)


def test_half_precision_values_are_summed_in_float64():
    metric = MeanEstimate()
    metric.update(torch.full((5000,), 300.0, dtype=torch.float16))
    assert metric.compute() == Estimate(300.0, 0.0, 5000)


def test_plain_numbers_keep_all_their_digits():
    metric = MeanEstimate()
    metric.update(0.1, weights=4)
    assert metric.compute() == Estimate(0.1, None, 1)


def test_one_value_has_no_standard_error():
    assert estimate([3.0]) == Estimate(3.0, None, 1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_values_have_no_mean():
    for found in (MeanEstimate().compute(), estimate([])):
        assert math.isnan(found.mean)
        assert found[1:] == (None, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_value_is_not_filtered(value: float):
    found = estimate([1.0, value], [2.0])
    assert not math.isfinite(found.mean)
    assert found.standard_error is not None
    assert math.isnan(found.standard_error)


def test_weights_give_the_mean_over_samples():
    samples = torch.tensor([1.0, 2.0, 6.0, 7.0, 9.0, 11.0])
    metric = MeanEstimate()
    for micro_batch in samples.split(4):
        metric.update(micro_batch.mean(), weights=len(micro_batch))
    found = metric.compute()
    assert found.mean == pytest.approx(samples.mean().item())
    assert found.standard_error == pytest.approx(math.sqrt((4 * 2**2 + 2 * 4**2) / ((2 - 1) * 6)))
    assert found.count == 2


def test_weighted_squared_standard_error_is_unbiased_for_micro_batches_of_unequal_size():
    # All 2^7 equally likely outcomes of seven independent samples ±1, in micro-batches of 1, 2 and 4.
    sizes = torch.tensor([1, 2, 4])
    squares = []
    for outcome in itertools.product([-1.0, 1.0], repeat=7):
        means = torch.stack([micro_batch.mean() for micro_batch in torch.tensor(outcome).split(sizes.tolist())])
        squares.append(estimate(means, weights=sizes).standard_error ** 2)
    assert np.mean(squares) == pytest.approx(1 / 7, rel=1e-6)


def test_equal_weights_of_any_size_change_nothing():
    found, plain = estimate([1.0, 2.0, 4.0], [8.0], weights=32), estimate([1.0, 2.0, 4.0], [8.0])
    assert found == pytest.approx(plain, rel=1e-12)


def test_processes_merge_to_what_one_process_gives():
    shares = [[1.0, 2.0, 6.0], [], [1e3]]  # the second process gets nothing
    states = []
    for share in shares:
        metric = MeanEstimate()
        metric.update(torch.tensor(share))
        states.append(metric.moments)

    def gather(state: Tensor, group: object) -> list[Tensor]:
        return states

    metric = MeanEstimate(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(torch.tensor(shares[0]))
    assert metric.compute() == pytest.approx(estimate([1.0, 2.0, 6.0, 1e3]), rel=1e-12)


def test_forward_accumulates_and_returns_the_estimate_of_its_batch():
    metric = MeanEstimate()
    assert metric(torch.tensor([1.0, 3.0])) == Estimate(2.0, 1.0, 2)
    assert metric(torch.tensor([5.0])) == Estimate(5.0, None, 1)
    assert metric.compute() == estimate([1.0, 3.0, 5.0])


def test_reset_forgets_and_a_pickled_copy_goes_on():
    metric = MeanEstimate()
    metric.update(torch.tensor([100.0]))
    metric.reset()
    metric.update(torch.tensor([1.0]))
    metric = pickle.loads(pickle.dumps(metric))
    metric.update(torch.tensor([2.0]))
    assert metric.compute() == Estimate(1.5, 0.5, 2)
