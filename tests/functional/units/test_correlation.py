from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_probes.functional.units.assignment import assignment
from lightning_probes.functional.units.correlation import correlations, pair_sums


def outputs(samples: int = 50, units: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, units, generator=torch.Generator().manual_seed(seed)) * 3 + 10


def test_correlations_are_those_of_numpy() -> None:
    here, there = outputs(seed=1), outputs(seed=2)
    expected = np.corrcoef(here.double().T, there.double().T)[:7, 7:]
    np.testing.assert_allclose(correlations(pair_sums(here, there)), expected, rtol=0, atol=1e-10)


def test_sums_of_parts_are_added() -> None:
    here, there = outputs(seed=1), outputs(seed=2)
    parts = sum(pair_sums(a, b) for a, b in zip(here.split(13), there.split(13), strict=True))
    np.testing.assert_allclose(correlations(parts), correlations(pair_sums(here, there)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_unit_that_is_constant_correlates_with_none(value: float) -> None:
    here, there = outputs(seed=1), outputs(seed=2)
    here[:, 3] = value
    found = correlations(pair_sums(here, there))
    assert found.isfinite().all()
    assert found[3].eq(0).all()
    assert correlations(pair_sums(there, here))[:, 3].eq(0).all()


def test_permuted_units_are_found_by_their_outputs() -> None:
    here, order = outputs(), torch.randperm(7, generator=torch.Generator().manual_seed(4))
    assert torch.equal(order[assignment(correlations(pair_sums(here, here[:, order])))], torch.arange(7))


def test_no_samples_correlate_with_nothing() -> None:
    assert correlations(torch.zeros(12, 7)).eq(0).all()
