"""What the shared tester asks of every callback, of `Head2Toe`."""

from __future__ import annotations

import pytest

from lightning_probes import Head2Toe
from lightning_probes.testing import Case, cases

# A label for each token, several labels for each sample, no labels in a tensor, and values.
REFUSES = (
    "gpt2", "multi_label", "gan", "inputs_with_weighted_targets", "regression", "unscales_in_eval", "random_windows",
)  # fmt: skip


@pytest.mark.parametrize("check", cases(Head2Toe, refuses=REFUSES))
def test_head2toe_is_undisturbing_and_complete(check: Case) -> None:
    check()
