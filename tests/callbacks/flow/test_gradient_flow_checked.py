"""What the shared tester asks of every callback, of `GradientFlow`."""

from __future__ import annotations

import pytest

from lightning_probes import GradientFlow
from lightning_probes.testing import Case, cases


@pytest.mark.parametrize("check", cases(GradientFlow, refuses=("graph_batch",)))
def test_gradient_flow_is_undisturbing_and_complete(check: Case) -> None:
    check()
