"""What the shared tester asks of every callback, of `ResidualFlow`."""

from __future__ import annotations

import pytest

from lightning_probes import ResidualFlow
from lightning_probes.testing import Case, cases
from lightning_probes.testing.zoo import EVERY_CASE

RESIDUAL = {"resnet", "bert", "vit", "gpt2"}


@pytest.mark.parametrize("check", cases(ResidualFlow, refuses=EVERY_CASE.keys() - RESIDUAL))
def test_residual_flow_is_undisturbing_and_complete(check: Case) -> None:
    check()
