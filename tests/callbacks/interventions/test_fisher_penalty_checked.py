"""The shared tester's checks of the penalty."""

from __future__ import annotations

import pytest

from lightning_probes import FisherPenalty
from lightning_probes.testing.checks import Check, cases

CHECKS = cases(FisherPenalty, off={"coefficient": 0}, coefficient=0.01, every=3)


@pytest.mark.parametrize("check", CHECKS)
def test_promise(check: Check) -> None:
    check()
