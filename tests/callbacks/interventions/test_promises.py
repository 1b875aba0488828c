"""The shared tester's checks of the penalty."""

from __future__ import annotations

import pytest

from lightning_probes import FisherPenalty
from lightning_probes.testing.checks import Check, cases

REFUSED: tuple[str, ...] = ()


@pytest.mark.parametrize("check", cases(FisherPenalty, refuses=REFUSED, off={"coefficient": 0}, coefficient=0.01, every=3))
def test_promise(check: Check) -> None:
    check()
