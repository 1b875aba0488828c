"""What the shared tester asks of every callback, of `LinearProbes`."""

from __future__ import annotations

import pytest

from lightning_probes import LinearProbes
from lightning_probes.testing import Case, cases

# A label for each token, several labels for each sample, and no labels in a tensor.
REFUSES = ("gpt2", "multi_label", "gan", "inputs_with_weighted_targets")


@pytest.mark.parametrize("check", cases(LinearProbes, refuses=REFUSES, per_layer=True))
def test_linear_probes_are_undisturbing_and_complete(check: Case) -> None:
    check()
