"""What the shared tester asks of every callback, of `ModeConnectivity`."""

from __future__ import annotations

import pytest

from lightning_probes.testing import Case, cases
from tests.callbacks.paths.sibling import ToSibling


@pytest.mark.parametrize("check", cases(ToSibling))
def test_mode_connectivity_is_undisturbing_and_complete(check: Case) -> None:
    check()
