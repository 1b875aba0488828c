"""What the shared tester claims of every callback, of each kind of plane."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lightning_probes import LossPlane
from lightning_probes.testing import cases


@pytest.mark.parametrize("check", cases(LossPlane, resolution=3))
def test_random_plane(check: Callable[[], None]) -> None:
    check()
