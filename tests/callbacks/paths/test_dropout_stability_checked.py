"""What the shared tester asks of every callback, of `DropoutStability`."""

from __future__ import annotations

import pytest

from lightning_probes import DropoutStability
from lightning_probes.testing import Case, cases


@pytest.mark.parametrize("check", cases(DropoutStability, halves=2, per_layer=True))
def test_dropout_stability_is_undisturbing_and_complete(check: Case) -> None:
    check()
